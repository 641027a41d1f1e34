"""How a claim is measured: plan, run, store, judge, report."""
