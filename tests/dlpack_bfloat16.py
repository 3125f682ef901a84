"""Tensors of bfloat16 that are no NumPy arrays, by DLPack; as torch's are, without torch or ml_dtypes."""

import ctypes


class ByteType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class DLTensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ByteType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
CAPSULE_DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


class DLManagedTensor(ctypes.Structure):
    _fields_ = [("tensor", DLTensor), ("context", ctypes.c_void_p), ("deleter", DELETER)]


class Bfloat16OfTorch:
    """A tensor of bfloat16 as torch has it: no NumPy array, but DLPack, whose capsules are counted.

    Parameters
    ----------
    bits : ndarray of uint16
    in_c_order : bool
        Whether the capsule leaves its strides out, as it may.
    has_array : bool
        Whether it has ``__array__``, which raises.
    device, lanes : int
        What the capsule says of them; 1 where it is an ordinary tensor.
    """

    def __init__(self, bits, in_c_order=False, has_array=True, device=1, lanes=1):
        self.bits = bits
        self.strides = None if in_c_order else [n // 2 for n in bits.strides]
        self.device, self.lanes = device, lanes
        self.given = self.freed = 0
        if has_array:
            self.__class__ = Bfloat16WithArray

    def __dlpack_device__(self):
        return self.device, 0

    def __dlpack__(self, **options):
        if options:
            raise BufferError("bfloat16 is not for NumPy")
        self.given += 1
        n = self.bits.ndim
        shape = (ctypes.c_int64 * max(n, 1))(*self.bits.shape)
        strides = None if self.strides is None else (ctypes.c_int64 * max(n, 1))(*self.strides)

        def free(_):
            self.freed += 1

        deleter = DELETER(free)
        tensor = DLTensor(
            self.bits.ctypes.data - 2,
            self.device,
            0,
            n,
            ByteType(4, 16, self.lanes),
            shape,
            strides,
            2,
        )
        managed = DLManagedTensor(tensor, None, deleter)
        self.kept = managed, shape, strides, deleter
        new = ctypes.pythonapi.PyCapsule_New
        new.restype = ctypes.py_object
        new.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(managed), b"dltensor", None)


class Bfloat16WithArray(Bfloat16OfTorch):
    def __array__(self, dtype=None, copy=None):
        raise TypeError("Got unsupported ScalarType BFloat16")
