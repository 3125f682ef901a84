// Work that other Python threads need not wait for, and what becomes of a thread whose interpreter
// ends.
#pragma once

#ifdef __GLIBCXX__
#include <cxxabi.h>
#endif

#include "bindings/bindings.hpp"
#include "platform.hpp"

namespace adafactor {

// What `call` returns, in which the thread may wait for the GIL. Where the interpreter has ended
// meanwhile, Python unwinds a thread that waits, with all C++ above it, whose destructors may not
// throw and need the GIL: that would end the process. Such a thread stops here instead, as Python
// itself stops it from version 3.14 on; the process is about to end.
template <class Call>
auto stops_where_unwound(const Call& call) {
#ifdef __GLIBCXX__
    try {
        return call();
    } catch (abi::__forced_unwind&) {
        sleep_until_the_process_ends();
    }
#else
    return call();
#endif
}

// Lets the GIL go while it lives.
class WithoutGil {
public:
    WithoutGil() : state_(PyEval_SaveThread()) {}
    ~WithoutGil() {
        stops_where_unwound([this] { PyEval_RestoreThread(state_); });
    }
    WithoutGil(const WithoutGil&) = delete;
    WithoutGil& operator=(const WithoutGil&) = delete;

private:
    PyThreadState* state_;
};

}  // namespace adafactor
