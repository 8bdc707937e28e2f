"""The page for users of other trainers says what is said."""

from __future__ import annotations

from tests.support.coming_from import FILES, FLAGS, PAGE, ROWS, page


def test_the_page_is_what_the_parser_and_the_reader_say() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


def test_it_has_sixty_flags_and_forms() -> None:
    flags = [flag for line in FLAGS.values() for flag in line.split(";")]
    assert len(flags) + len(FILES) + len(ROWS) >= 60
