"""The owner's side of deployments: the ledger, starting and following a supervisor, adopting an engine without one."""
