"""The contenders' names: what joins the code that times them to the tables and plots."""

SEED = "NumPy seed"
IN_PLACE = "NumPy in place"
NUMBA = "numba"
NATIVE = "adafactor_native"
UNSCALED = "adafactor_native, scale_parameter=False"
FLOOR = "param -= k*grad"
READ = "read grad"
