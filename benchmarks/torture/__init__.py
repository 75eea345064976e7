"""Long runs that inject faults; `make torture` runs each module here (docs/reliability.md)."""
