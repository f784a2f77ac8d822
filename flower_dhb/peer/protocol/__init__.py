"""How neighbors agree, round by round: a state machine without threads, sockets, files or clocks."""
