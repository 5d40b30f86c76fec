"""Records, instruments, time and the rules that turn wire values into trustworthy ticks. Pure, no I/O."""
