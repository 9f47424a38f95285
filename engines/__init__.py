"""The contract of an engine, and the engines: each turns a `ServeSpec` into a plan and speaks to its server."""
