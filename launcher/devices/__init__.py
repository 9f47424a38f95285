"""The devices room: finds devices, says which variables and nodes a program needs, and asks vendors' tools."""
