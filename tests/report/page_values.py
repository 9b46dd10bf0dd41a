"""What a page says to a program: its tables' cells by name, and its ids."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

Row = dict[str, str]


@dataclass
class PageValues(HTMLParser):
    """Reads a page with nothing but the standard library.

    Attributes:
        headings: id -> what the columns are called.
        tables: id -> rows; a row's first cell is under "", named cells hold their plain values.
        ids, references: of everything on the page, and what refers to them.
    """

    tables: dict[str, list[Row]] = field(default_factory=dict)
    headings: dict[str, list[str]] = field(default_factory=dict)
    ids: list[str] = field(default_factory=list)
    references: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    _table: str = ""
    _row: Row = field(default_factory=dict)
    _heads_row: bool = False
    _heads_column: bool = False

    @classmethod
    def of(cls, page: str) -> "PageValues":
        values = cls()
        super(PageValues, values).__init__()
        values.feed(page)
        return values

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.references += [value[1:] for name, value in found.items() if name == "href" and value.startswith("#")]
        self.references += [value[5:-1] for value in found.values() if value.startswith("url(#")]
        if tag == "table":
            self._table = found.get("id", "")
        elif tag == "tr":
            self._row = {}
            self.tables.setdefault(self._table, []).append(self._row)
        elif tag == "th":
            self._heads_row, self._heads_column = found.get("scope") == "row", found.get("scope") == "col"
        elif tag == "td" and "data-name" in found:
            self._row.setdefault(found["data-name"], found["data-value"])

    def handle_endtag(self, tag: str) -> None:
        if tag == "th":
            self._heads_row = self._heads_column = False

    def handle_data(self, data: str) -> None:
        self.text.append(data)
        if self._heads_column and data.strip():
            self.headings.setdefault(self._table, []).append(data)
        if self._heads_row:
            self._row[""] = self._row.get("", "") + data

    def rows(self, table: str) -> list[Row]:
        """A table's rows, without its headings."""
        return [row for row in self.tables[table] if "" in row]
