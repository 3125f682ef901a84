// Work that other Python threads need not wait for.
#pragma once

#include <unistd.h>

#include "bindings/bindings.hpp"

namespace adafactor {

// Lets the GIL go while it lives. pybind11's own guard ends the process where the interpreter has
// ended meanwhile: Python then unwinds a daemon thread that asks for the GIL, out of a destructor.
class WithoutGil {
public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() { take_back(state_); }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

private:
    // Stops the thread that is unwound, as Python itself does from version 3.14 on: nothing that it
    // holds could be given back without the GIL, and the process is about to end.
    struct Stop {
        bool unwound = true;
        ~Stop() {
            while (unwound) pause();
        }
    };

    // Not inlined: where nothing may be thrown, unwinding would end the process before Stop.
    __attribute__((noinline)) static void take_back(PyThreadState* state) noexcept(false) {
        Stop stop;
        PyEval_RestoreThread(state);
        stop.unwound = false;
    }

    PyThreadState* state_;
};

}  // namespace adafactor
