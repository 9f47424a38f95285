"""The gateway: one OpenAI endpoint in front of deployments, in one process with one thread that answers."""
