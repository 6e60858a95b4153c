"""The paper's findings, judged for one study."""
