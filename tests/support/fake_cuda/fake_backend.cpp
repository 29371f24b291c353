// Memory, queues and recordings of the fake device. Its own queue does everything at once, those beside it as late as
// they may.
#include "tests/support/fake_cuda/fake_backend.h"

#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "core/base/error.h"
#include "core/device/backend_cpu.h"
#include "core/device/backend_cuda.h"
#include "core/device/cuda_clock.h"
#include "core/device/queue_scope.h"
#include "tests/support/fake_cuda/fake_launch.h"

namespace castor {
namespace {

int stream_token = 0;
long launches = 0;
std::vector<std::function<void()>>* recorded = nullptr;  // while work is recorded

class FakeRecording final : public Recording {
 public:
  explicit FakeRecording(std::vector<std::function<void()>> work) : work_(std::move(work)) {}
  void run() override {
    for (const std::function<void()>& each : work_) each();
  }

 private:
  std::vector<std::function<void()>> work_;
};

/// Work of a side queue that is not done before somebody asks for it: whoever reads too early finds what was there
/// before.
struct PendingWork {
  std::deque<std::function<void()>> work;
  std::uint64_t given = 0, done = 0;

  void run_until(std::uint64_t position) {
    for (; done < position; ++done) {
      const std::function<void()> next = std::move(work.front());
      work.pop_front();
      next();
    }
  }
};

/// A point in a side queue; what an Event of the fake device holds.
struct FakeEvent {
  std::shared_ptr<PendingWork> queue;
  std::uint64_t position;
};

FakeEvent* as_fake(const Event& event) { return static_cast<FakeEvent*>(event.get()); }

void finish(const Event& event) {
  if (event != nullptr) as_fake(event)->queue->run_until(as_fake(event)->position);
}

/// The queues there are, by their streams.
std::map<void*, std::shared_ptr<PendingWork>>& side_queues() {
  static std::map<void*, std::shared_ptr<PendingWork>> all;
  return all;
}

class FakeSideQueue final : public SideQueue {
 public:
  FakeSideQueue() { side_queues()[pending_.get()] = pending_; }
  FakeSideQueue(const FakeSideQueue&) = delete;
  FakeSideQueue& operator=(const FakeSideQueue&) = delete;
  ~FakeSideQueue() override {
    pending_->run_until(pending_->given);
    side_queues().erase(pending_.get());
  }
  void* stream() override { return pending_.get(); }
  void copy(void* to, const void* from, std::size_t bytes) override {
    add([=] { std::memcpy(to, from, bytes); });
  }
  Event record() override { return std::make_shared<FakeEvent>(FakeEvent{pending_, pending_->given}); }
  void wait(const Event& event) override {
    if (event != nullptr) add([event] { finish(event); });
  }

 private:
  void add(std::function<void()> work) {
    pending_->work.push_back(std::move(work));
    ++pending_->given;
  }

  std::shared_ptr<PendingWork> pending_ = std::make_shared<PendingWork>();
};

class FakeCudaBackend final : public CpuBackend {
 public:
  void* allocate(std::size_t bytes) override {
    void* data = CpuBackend::allocate(bytes);
    if (data != nullptr)
      std::memset(data, 0xFF, bytes);  // NaN in every float format: reading what was never written shows
    return data;
  }
  void* stream() override {
    if (SideQueue* const queue = QueueScope::current()) return queue->stream();
    catch_up();
    return &stream_token;
  }
  void copy_within(void* to, const void* from, std::size_t bytes) override {
    refuse_while_recording();
    catch_up();
    CpuBackend::copy_within(to, from, bytes);
  }
  void copy_from_host(void* to, const void* from, std::size_t bytes) override {
    refuse_while_recording();
    catch_up();
    CpuBackend::copy_from_host(to, from, bytes);
  }
  void copy_to_host(void* to, const void* from, std::size_t bytes) override {
    refuse_while_recording();
    catch_up();
    CpuBackend::copy_to_host(to, from, bytes);
  }
  void fill_zero(void* data, std::size_t bytes) override {
    refuse_while_recording();
    catch_up();
    CpuBackend::fill_zero(data, bytes);
  }
  /// The queue waits, not the host: what the event stands for may still be open when this returns.
  void wait(const Event& event) override { waited_for_.push_back(event); }
  void wait_on_host(const Event& event) override { finish(event); }
  /// A little is done each time.
  bool has_passed(const Event& event) override {
    if (event == nullptr) return true;
    PendingWork& queue = *as_fake(event)->queue;
    if (queue.done < as_fake(event)->position) queue.run_until(queue.done + 1);
    return queue.done >= as_fake(event)->position;
  }
  std::unique_ptr<SideQueue> open_queue() override { return std::make_unique<FakeSideQueue>(); }
  bool begin_recording() override {
    work_.clear();
    recorded = &work_;
    return true;
  }
  std::unique_ptr<Recording> end_recording() override {
    recorded = nullptr;
    return std::make_unique<FakeRecording>(std::exchange(work_, {}));
  }

 private:
  static void refuse_while_recording() {
    if (recorded != nullptr) throw DeviceError("fake cuda: bytes are moved while work is recorded");
  }
  void catch_up() {
    for (const Event& event : std::exchange(waited_for_, {})) finish(event);
  }

  std::vector<Event> waited_for_;            // before the queue's next work
  std::vector<std::function<void()>> work_;  // recorded so far
};

}  // namespace

// What backends.cpp asks of CUDA: there is no GPU but the fake one, and that somebody installs.
int cuda_device_count() { return 0; }

std::unique_ptr<QueueClock> make_cuda_clock(Device) { return nullptr; }

std::unique_ptr<Backend> make_page_locked_backend() { return std::make_unique<CpuBackend>(); }

std::unique_ptr<Backend> make_cuda_backend(int ordinal) {
  throw DeviceError(
      cat("device cuda:", ordinal, ": the fake device is ", kFakeCuda, ", and install_fake_cuda makes it"));
}

void install_fake_cuda() { install_backend(kFakeCuda, std::make_unique<FakeCudaBackend>()); }

long fake_cuda_launches() { return launches; }

Cpu fake_launch(const Cuda& cuda) {
  const auto queue = side_queues().find(cuda.stream);
  if (!(cuda.device == kFakeCuda) || (cuda.stream != &stream_token && queue == side_queues().end()))
    throw DeviceError("fake cuda: a kernel was launched with another device or stream");
  if (recorded != nullptr) throw DeviceError("fake cuda: a kernel that is not recorded here was launched meanwhile");
  if (queue != side_queues().end()) queue->second->run_until(queue->second->given);
  ++launches;
  return Cpu{kCpu};
}

void launch_or_record(const Cuda& cuda, std::function<void(const Cpu&)> kernel) {
  if (recorded == nullptr) return kernel(fake_launch(cuda));
  recorded->push_back([cuda, kernel = std::move(kernel)] { kernel(fake_launch(cuda)); });
}

}  // namespace castor
