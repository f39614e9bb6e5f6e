"""The process of one trial: what it gets of the machine, how it starts, what it says, how it ends."""
