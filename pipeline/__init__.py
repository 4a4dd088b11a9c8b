"""One run over a corpus: plan, the Ray Data graph, ledger, table. The only package that imports ray."""
