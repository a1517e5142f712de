"""`lira-edge bench --all`: every engine of a machine in one table; and the tables of docs/results."""
