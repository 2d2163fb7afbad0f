"""Training on another machine: a queue of runs, a worker that trains them, parcels of files."""
