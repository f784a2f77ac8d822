"""How neighbors agree, round by round: a state machine that does nothing by itself."""
