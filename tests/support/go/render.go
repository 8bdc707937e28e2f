// Templates as Ollama renders them: text/template, given what template/template.go of Ollama gives.
// Reads a list of {"template", "messages"} as JSON, and writes the list of texts.
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

func render(source string, messages []message) (string, error) {
	parsed, err := template.New("").Option("missingkey=zero").Parse(source)
	if err != nil {
		return "", err
	}
	var system []string
	var joined []message // neighbours of one role are one message
	for _, each := range messages {
		if each.Role == "system" {
			system = append(system, each.Content)
		}
		last := len(joined) - 1
		if last >= 0 && joined[last].Role == each.Role {
			joined[last].Content += "\n\n" + each.Content
		} else {
			joined = append(joined, each)
		}
	}
	var text strings.Builder
	err = parsed.Execute(&text, map[string]any{
		"System": strings.Join(system, "\n\n"), "Messages": joined, "Response": "",
	})
	return text.String(), err
}

func main() {
	var asked []struct {
		Template string
		Messages []message
	}
	if err := json.NewDecoder(os.Stdin).Decode(&asked); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, each := range asked {
		text, err := render(each.Template, each.Messages)
		if err != nil {
			panic(err)
		}
		texts = append(texts, text)
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
