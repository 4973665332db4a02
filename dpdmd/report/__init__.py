"""The report: what runs left on disk, read, drawn, and put on one page. A user of their files; imports no torch."""
