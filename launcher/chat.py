"""Talk with a model: `python launcher/chat.py --model smollm2-135m --adapter RUN/adapter`"""

from installed import program

if __name__ == "__main__":
    program("chat")
