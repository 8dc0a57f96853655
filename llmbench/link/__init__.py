"""Server to agent: control frames over TCP, arrays in shared memory, and the agent process."""
