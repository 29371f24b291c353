// Ctrl-C, SIGTERM and a closed terminal as a question that loops ask, instead of a death in the middle of a write.
//
// The first signal only raises a flag: the running loop sees it at its next step, finishes what must not be torn and
// returns. The second signal ends the process at once, for whoever does not want to wait; but one stop may come as
// several signals within a moment (a terminal that closes sends SIGHUP, and so does its shell; a service manager
// signals a launcher and the ranks, to which the launcher passes it on), and these are one. Delicate: a signal handler
// may touch nothing but lock-free atomics and async-signal-safe calls.
#pragma once

#include <chrono>

#include "core/base/error.h"

namespace castor {

/// Work that a stop broke off. Where it was waiting for the system it is an IoError with the code EINTR instead.
class Stopped : public Error {
 public:
  using Error::Error;
};

/// How long after the first signal others still belong to the same stop.
inline constexpr std::chrono::milliseconds kOneStop{500};

/// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process, on the main thread. A signal that was ignored
/// before (nohup, a background job) stays ignored. May be called again; the flag is kept.
void install_stop_handlers();

/// True once a stop was asked for. Cheap enough for every step.
bool stop_requested() noexcept;

/// Asks for a stop as a signal would.
///   signal_number   SIGINT or SIGTERM
void request_stop(int signal_number) noexcept;

/// The exit code by which shells know the cause: 128 + the signal (130 for Ctrl-C), or 0 if no stop was asked for.
int stop_exit_code() noexcept;

/// Forgets a stop: for a process that goes on with other work, such as a test.
void clear_stop_request() noexcept;

}  // namespace castor
