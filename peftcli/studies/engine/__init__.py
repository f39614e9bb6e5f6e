"""The engine of every study: trials, where their state is kept, who works on which, and the process that trains one."""
