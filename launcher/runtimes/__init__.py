"""The runtimes room: starts and ends the program, as a process, as a container, or not at all (a remote server)."""
