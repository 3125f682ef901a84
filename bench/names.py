"""The contenders' names: what joins the code that times them to the tables and plots."""

PLAIN = "plain NumPy"
IN_PLACE = "NumPy in place"
NUMBA = "numba"
NATIVE = "adafactor_native"
UNSCALED = "adafactor_native, scale_parameter=False"
CARRIED = "adafactor_native, carry_param_rms=True"
ONE_CALL = "Optimizer, all or nothing"
ONE_CALL_BY_TENSOR = "Optimizer, atomic='tensor'"
ONE_CALL_CARRIED = "Optimizer, atomic='tensor', carry_param_rms=True"
ONE_CALL_AS_TORCH = "Optimizer, convention='torch'"
ONE_CALL_AS_HUGGING_FACE = "Optimizer, convention='huggingface'"
ONE_CALL_AS_KERAS = "Optimizer, convention='keras'"
ONE_CALLS = [
    ONE_CALL,
    ONE_CALL_BY_TENSOR,
    ONE_CALL_CARRIED,
    ONE_CALL_AS_TORCH,
    ONE_CALL_AS_HUGGING_FACE,
    ONE_CALL_AS_KERAS,
]
FLOAT32_STATE = "Optimizer, state_dtype='float32'"
MEASURED = "Optimizer, step after measure"
FLOOR = "param -= k*grad"
READ = "read grad"
# Loops of the same work, whose fastest in a run is the floor, or the read.
FLOORS = [FLOOR, f"{FLOOR}, one stream", f"{FLOOR}, prefetched"]
READS = [READ, f"{READ}, one stream", f"{READ}, prefetched"]
IN_TORCH = "adafactor_native.torch"
TORCH = "torch Adafactor"
TORCH_FOREACH = "torch Adafactor, foreach"
TORCH_COMPILED = "torch Adafactor, compiled"
TORCH_ADAMW = "torch AdamW, fused"
TRANSFORMERS = "transformers Adafactor"
OPTAX = "optax adafactor"
KERAS = "keras Adafactor"
PEERS = [TORCH, TORCH_FOREACH, TORCH_COMPILED, TRANSFORMERS, OPTAX, KERAS, TORCH_ADAMW]
FLOAT32 = "Optimizer, float32"
HALF_GRAD = "Optimizer, bfloat16 gradient"
HALF_COPY = "Optimizer, bfloat16 gradient, bfloat16 copy"
HALF = "Optimizer, bfloat16"
HALF_STOCHASTIC = "Optimizer, bfloat16, stochastic"
HALF_MASTERS = "Optimizer, bfloat16, masters"
HALF_SPLIT = "Optimizer, bfloat16, split"
HALF_FLOAT16 = "Optimizer, float16"
HALF_FLOAT16_STOCHASTIC = "Optimizer, float16, stochastic"
HALF_MOMENTUM = "Optimizer, bfloat16, momentum of float32"
HALF_MOMENTUM_IN_HALF = "Optimizer, bfloat16, momentum of bfloat16"
TORCH_HALF = f"{TORCH}, bfloat16"
TORCH_FOREACH_HALF = f"{TORCH_FOREACH}, bfloat16"
TORCH_ADAMW_HALF = f"{TORCH_ADAMW}, bfloat16"
TRANSFORMERS_HALF = f"{TRANSFORMERS}, bfloat16"
IN_TORCH_HALF = f"{IN_TORCH}, bfloat16"
IN_TORCH_STOCHASTIC = f"{IN_TORCH}, bfloat16, stochastic"
