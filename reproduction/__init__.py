"""The claims of the paper, checked: a grid of runs, what each of them measures, verdicts, and the page that says so."""
