// The stop flag and its handler.
//
// Delicate: the handler has a stack of its own, because oneDNN's compiled kernels use the stack pointer for data (seen
// in oneDNN 2.6.3's sgemm for AVX-512): a signal's frame would be written over the heap. The kernel gives a signal of
// the process to its main thread where that takes it, which is the one that installs the handlers. The second signal
// leaves through _exit, without destructors; whatever must survive that (checkpoints) is written so that it survives a
// crash at any byte anyway. The handler keeps errno, since it may run between a system call and the code that reads its
// errno.
#include "core/base/interrupt.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include <time.h>
#include <unistd.h>

namespace castor {
namespace {

std::atomic<int> stop_signal{0};
std::atomic<std::int64_t> stop_time{0};  // of the first signal, in milliseconds
static_assert(std::atomic<int>::is_always_lock_free && std::atomic<std::int64_t>::is_always_lock_free,
              "the stop flag and its time are set in a signal handler");

// std::chrono's clocks promise nothing to signal handlers; POSIX names clock_gettime among what they may call.
std::int64_t milliseconds_now() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000;
}

void say(std::string_view text) {
  // Nothing can be done about a failed write here.
  [[maybe_unused]] const ssize_t written = ::write(STDERR_FILENO, text.data(), text.size());
}

extern "C" void castor_on_stop_signal(int number) {
  const int saved_errno = errno;
  int expected = 0;
  if (stop_signal.compare_exchange_strong(expected, number)) {
    stop_time.store(milliseconds_now());
    say("\ncastor: stopping after this step; press Ctrl-C again to stop at once\n");
  } else if (milliseconds_now() - stop_time.load() >= kOneStop.count()) {
    say("\ncastor: stopped at once\n");
    _exit(128 + number);
  }
  errno = saved_errno;
}

}  // namespace

void install_stop_handlers() {
  alignas(16) static unsigned char own_stack[std::size_t{64} << 10];
  stack_t stack{};
  stack.ss_sp = own_stack;
  stack.ss_size = sizeof(own_stack);
  sigaltstack(&stack, nullptr);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction before {};
    if (sigaction(number, nullptr, &before) == 0 && before.sa_handler == SIG_IGN) continue;
    struct sigaction action {};
    action.sa_handler = castor_on_stop_signal;
    sigemptyset(&action.sa_mask);
    action.sa_flags = SA_RESTART | SA_ONSTACK;
    sigaction(number, &action, nullptr);
  }
}

bool stop_requested() noexcept { return stop_signal.load(std::memory_order_relaxed) != 0; }

void request_stop(int signal_number) noexcept {
  int expected = 0;
  if (stop_signal.compare_exchange_strong(expected, signal_number)) stop_time.store(milliseconds_now());
}

int stop_exit_code() noexcept {
  const int number = stop_signal.load();
  return number == 0 ? 0 : 128 + number;
}

void clear_stop_request() noexcept { stop_signal.store(0); }

}  // namespace castor
