"""What is timed, one file per way of writing the step; `registry` lists them all."""
