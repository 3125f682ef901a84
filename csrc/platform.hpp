// What operating systems do differently, in one place.
#pragma once

#if !defined(__GNUC__) && !defined(__clang__)
#error \
    "This needs GCC or Clang (on Windows Clang, too): the kernels are written in their vector types"
#endif

#if defined(__unix__) || defined(__APPLE__)
#define ADAFACTOR_HAS_FORK
#include <pthread.h>
#include <unistd.h>
#else
#include <chrono>
#include <thread>
#endif

namespace adafactor {

// From now on each child of fork() calls `function` first. Where there is no fork(), nothing does.
// The int has no meaning: it lets a static variable's initialisation be the call.
inline int call_in_children_of_fork([[maybe_unused]] void (*function)()) {
#ifdef ADAFACTOR_HAS_FORK
    return pthread_atfork(nullptr, nullptr, function);
#else
    return 0;
#endif
}

[[noreturn]] inline void sleep_until_the_process_ends() {
    for (;;) {
#ifdef ADAFACTOR_HAS_FORK
        pause();
#else
        std::this_thread::sleep_for(std::chrono::hours(1));
#endif
    }
}

}  // namespace adafactor
