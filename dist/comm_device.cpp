// Collectives of GPU tensors as exchanges and ordered sums; see comm_device.h.
#include "dist/comm_device.h"

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "build_config.h"
#include "core/base/error.h"
#include "core/device/backend.h"
#include "core/device/caching_allocator.h"
#include "core/device/trace.h"
#include "core/ops/ordered_sum_cuda.h"
#include "dist/comm_cuda_peers.h"
#include "dist/comm_nccl.h"

namespace castor::dist {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLook{20};        // how often the guard looks
constexpr std::chrono::milliseconds kEndTime{10000};  // how long it waits at its own end for links that end

/// Watches what is under way on the GPU, for all groups of a job: ends it when the job fails, fails the job when an
/// exchange takes too long.
///
/// Delicate: to end a link may mean to wait for the device, which is free only when what waits on it for the other
/// links has ended, too: each is ended on a thread of its own.
class Guard {
 public:
  Guard(Device device, Health& health, int rank, GiveUp give_up)
      : device_(device), health_(health), rank_(rank), give_up_(std::move(give_up)) {
    thread_ = std::thread([this] { run(); });
  }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
  ~Guard() {
    {
      const std::lock_guard lock(mutex_);
      is_closing_ = true;
    }
    changed_.notify_all();
    thread_.join();
    std::unique_lock lock(ending_->mutex);
    ending_->changed.wait_for(lock, kEndTime, [this] { return ending_->count == 0; });
  }

  void add_link(std::shared_ptr<DeviceLink> link) {
    const std::lock_guard lock(mutex_);
    links_.push_back(std::move(link));
  }
  void remove_link(const std::shared_ptr<DeviceLink>& link) {
    const std::lock_guard lock(mutex_);
    std::erase(links_, link);
  }
  void add(Event end, Clock::time_point deadline, std::string text, std::uint64_t sequence) {
    const std::lock_guard lock(mutex_);
    pending_.push_back({std::move(end), deadline, std::move(text), sequence});
  }

 private:
  struct Pending {
    Event end;
    Clock::time_point deadline;
    std::string text;
    std::uint64_t sequence;
  };
  /// Links that are being ended; their threads may outlive the guard.
  struct Ending {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t count = 0;
  };

  void end_links() {
    pending_.clear();
    for (std::shared_ptr<DeviceLink>& link : std::exchange(links_, {})) {
      {
        const std::lock_guard lock(ending_->mutex);
        ++ending_->count;
      }
      std::thread([link = std::move(link), ending = ending_]() mutable {
        link->abort();
        link.reset();
        const std::lock_guard lock(ending->mutex);
        --ending->count;
        ending->changed.notify_all();
      }).detach();
    }
    if (give_up_ == nullptr) return;
    std::thread([give_up = std::exchange(give_up_, nullptr), failure = health_.failure()] {
      std::this_thread::sleep_for(kUnwindTime);
      give_up(failure);
    }).detach();
  }

  void run() {
    std::unique_lock lock(mutex_);
    while (!changed_.wait_for(lock, kLook, [&] { return is_closing_; })) {
      if (health_.failed()) {
        end_links();
        continue;
      }
      try {
        std::erase_if(pending_, [&](const Pending& each) { return backend(device_).has_passed(each.end); });
      } catch (const DeviceError&) {
        pending_.clear();  // the device is lost; who uses it next says so
      }
      const auto late = std::ranges::find_if(pending_, [&](const Pending& p) { return Clock::now() > p.deadline; });
      if (late == pending_.end()) continue;
      health_.report({rank_, "exchange", late->sequence, true,
                      cat("rank ", rank_, " waits in vain on ", device_, " for the end of ", late->text)});
    }
  }

  Device device_;
  Health& health_;
  int rank_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool is_closing_ = false;
  GiveUp give_up_;
  std::vector<std::shared_ptr<DeviceLink>> links_;
  std::vector<Pending> pending_;
  std::shared_ptr<Ending> ending_ = std::make_shared<Ending>();
  std::thread thread_;
};

/// What the groups of a job share.
struct Shared {
  Device device;
  Health& health;
  std::chrono::milliseconds timeout;
  GpuTransport transport;
  Guard guard;
};

std::size_t bytes_of(const Buffer& buffer) { return buffer.view.bytes(); }
DeviceBytes device_bytes(const Buffer& buffer) { return {buffer.view.data, bytes_of(buffer)}; }

/// A collective on its way: memory it uses stays until the compute queue is behind it.
class DeviceWork final : public Work::State {
 public:
  DeviceWork(Collective collective, std::vector<Tensor> scratch, Event end, const std::shared_ptr<Shared>& shared,
             std::string text, std::uint64_t sequence)
      : collective_(std::move(collective)),
        scratch_(std::move(scratch)),
        end_(std::move(end)),
        shared_(shared),
        text_(std::move(text)),
        sequence_(sequence) {}
  DeviceWork(const DeviceWork&) = delete;
  DeviceWork& operator=(const DeviceWork&) = delete;
  ~DeviceWork() override {
    try {
      let_go();
    } catch (const DeviceError&) {  // the device is lost; who uses it next says so
    }
  }

  bool done() const override { return shared_->health.failed() || backend(shared_->device).has_passed(end_); }

  void wait(std::optional<std::chrono::milliseconds> limit) override {
    if (limit) {
      const auto until = Clock::now() + *limit;
      while (!done()) {
        if (Clock::now() >= until) {
          throw CommTimeout(cat(text_, " is not done after ", limit->count(), " ms; it goes on"), -1, "wait",
                            sequence_);
        }
        std::this_thread::yield();
      }
    }
    let_go();
    if (shared_->health.failed()) throw_failure(shared_->health.failure(), text_);
  }

 private:
  void let_go() {
    backend(shared_->device).wait(std::exchange(end_, {}));
    collective_ = {};
    scratch_.clear();
  }

  Collective collective_;
  std::vector<Tensor> scratch_;
  Event end_;
  std::shared_ptr<Shared> shared_;
  std::string text_;
  std::uint64_t sequence_;
};

class DeviceComm final : public Comm {
 public:
  DeviceComm(Comm& host, std::shared_ptr<Shared> shared) : host_(host), shared_(std::move(shared)) {}
  DeviceComm(std::unique_ptr<Comm> host, std::shared_ptr<Shared> shared)
      : owned_(std::move(host)), host_(*owned_), shared_(std::move(shared)) {}
  ~DeviceComm() override {
    if (link_ != nullptr) shared_->guard.remove_link(link_);
    for (const Work& check : checking_) {
      try {
        check.wait();
      } catch (const std::exception&) {  // the job has failed; whoever goes on with it is told
      }
    }
  }

  int rank() const override { return host_.rank(); }
  int world_size() const override { return host_.world_size(); }
  const std::string& name() const override { return host_.name(); }
  const std::vector<int>& members() const override { return host_.members(); }
  std::unique_ptr<Comm> split(int color, int key) override {
    std::unique_ptr<Comm> host = host_.split(color, key);
    if (host == nullptr) return nullptr;
    return std::make_unique<DeviceComm>(std::move(host), shared_);
  }
  void abort(const std::string& reason) noexcept override { host_.abort(reason); }

 protected:
  bool takes(Device device) const override { return device.is_cpu() || device == shared_->device; }

  Work submit(Collective collective) override {
    if (collective.device().is_cpu()) return host_.start(std::move(collective));
    return launch(std::move(collective));
  }
  void execute(Collective collective) override {
    if (collective.device().is_cpu()) return host_.run(std::move(collective));
    launch(std::move(collective)).wait();
  }

 private:
  Work launch(Collective collective) {
    const std::uint64_t sequence = sequence_++;
    const std::string text = cat(collective.describe(), " on GPUs of group ", name());
    if (shared_->health.failed()) throw_failure(shared_->health.failure(), text);
    if (queue_ == nullptr) open();
    // Scratch is the compute queue's memory: what used it before is over when the side queue begins.
    std::vector<Tensor> scratch;
    std::vector<DeviceBytes> sends(static_cast<std::size_t>(world_size())), receives(sends.size());
    std::vector<const void*> terms;
    plan(collective, sends, receives, terms, scratch);
    agree(collective);
    queue_->wait(backend(shared_->device).record());
    std::optional<TraceSpan> span;
    if (is_tracing()) span.emplace(text, "collective", queue_.get(), "collectives of group " + name());
    try {
      if (link_ != nullptr) link_->exchange(sends, receives, queue_->stream());
    } catch (const JobFailed&) {
      throw_failure(shared_->health.failure(), text);
    } catch (const CommError& error) {
      throw_failure(shared_->health.report({members()[own()], "exchange", sequence, false, error.what()}), text);
    }
    const DeviceBytes own_in = sends[own()], own_out = receives[own()];
    if (own_out.bytes > 0 && own_in.data != own_out.data) queue_->copy(own_out.data, own_in.data, own_in.bytes);
    if (!terms.empty()) add(collective, terms);
    span.reset();
    const Event end = queue_->record();
    if (link_ != nullptr) shared_->guard.add(end, Clock::now() + shared_->timeout, text, sequence);
    return Work(std::make_shared<DeviceWork>(std::move(collective), std::move(scratch), end, shared_, text, sequence));
  }

  std::size_t own() const { return static_cast<std::size_t>(rank()); }

  /// Opens everything or nothing: a queue without its link would add up what nobody has sent.
  void open() {
    std::unique_ptr<SideQueue> queue = backend(shared_->device).open_queue();
    if (world_size() > 1) {
      std::unique_ptr<Comm> checks = host_.split(0, rank());
      std::shared_ptr<DeviceLink> link = connect();
      shared_->guard.add_link(link);
      checks_ = std::move(checks);
      link_ = std::move(link);
    }
    queue_ = std::move(queue);
  }

  std::shared_ptr<DeviceLink> connect() {
    if constexpr (kHasCuda) {
      if (shared_->transport != GpuTransport::kNccl) {
        if (auto link = connect_peers(host_, shared_->device, shared_->health)) return link;
      }
    }
    if (shared_->transport == GpuTransport::kPeer) {
      throw DeviceError(cat("group ", name(),
                            ": its GPUs do not all reach each other's memory (the log says which one), "
                            "as gpu_transport: peer asks; use auto or nccl"));
    }
    if constexpr (kHasNccl) return connect_nccl(host_, shared_->device, shared_->health, shared_->timeout);
    throw DeviceError(cat("group ", name(), ": ", world_size(),
                          " GPUs that do not all reach each other's memory need NCCL, which this build has not: "
                          "configure with -Dnccl=enabled, or train on the CPU with env_cfg.device: cpu"));
  }

  /// Compares with the other ranks what is about to be exchanged, without waiting for them: a meeting on the host
  /// under the collective's description, whose own fingerprint tells who differs, is late or gone.
  void agree(const Collective& collective) {
    if (checks_ == nullptr) return;
    while (!checking_.empty() && checking_.front().done()) {
      const Work check = std::move(checking_.front());
      checking_.pop_front();
      check.wait();
    }
    std::string layout;
    for (const auto* side : {&collective.in, &collective.out}) {
      const bool is_whole_layout = side->size() == static_cast<std::size_t>(world_size());
      for (const Buffer& piece : *side) {
        if (is_whole_layout) layout += cat(layout.empty() ? " in " : "+", piece.view.numel());
      }
      if (!layout.empty()) break;
    }
    checking_.push_back(checks_->start(Collective::barrier(
        cat(collective.describe(), layout, collective.root >= 0 ? cat(" root ", collective.root) : std::string()))));
  }

  /// What goes where. A sum's terms, in the order of ranks, are on the device when the exchange is done.
  void plan(const Collective& collective, std::vector<DeviceBytes>& sends, std::vector<DeviceBytes>& receives,
            std::vector<const void*>& terms, std::vector<Tensor>& scratch) {
    const std::size_t world = sends.size();
    if (collective.reduce != ReduceOp::kSum && collective.reduce != ReduceOp::kMean)
      throw DTypeError(
          cat(collective.describe(), ": of GPU tensors there are sums and means; move them to the CPU first"));
    const auto collect_terms = [&](const Buffer& own_term) {
      const CategoryScope category(Category::workspace);
      for (std::size_t r = 0; r < world; ++r) {
        if (r == own()) {
          terms.push_back(own_term.view.data);
          continue;
        }
        scratch.push_back(Tensor::empty({own_term.view.numel()}, own_term.view.dtype, shared_->device));
        receives[r] = {scratch.back().view().data, bytes_of(own_term)};
        terms.push_back(receives[r].data);
      }
    };
    switch (collective.op) {
      case CollectiveOp::kReduceScatter:
        for (std::size_t r = 0; r < world; ++r) {
          if (r != own()) sends[r] = device_bytes(collective.in[r]);
        }
        return collect_terms(collective.in[own()]);
      case CollectiveOp::kAllReduce:
        for (std::size_t r = 0; r < world; ++r) {
          if (r != own()) sends[r] = device_bytes(collective.out[0]);
        }
        return collect_terms(collective.out[0]);
      case CollectiveOp::kAllGather:
        for (std::size_t r = 0; r < world; ++r) {
          sends[r] = device_bytes(collective.in[0]);
          receives[r] = device_bytes(collective.out[r]);
        }
        return;
      case CollectiveOp::kAllToAll:
        for (std::size_t r = 0; r < world; ++r) {
          sends[r] = device_bytes(collective.in[r]);
          receives[r] = device_bytes(collective.out[r]);
        }
        return;
      case CollectiveOp::kBroadcast: {
        const auto root = static_cast<std::size_t>(collective.root);
        if (root != own()) {
          receives[root] = device_bytes(collective.out[0]);
        } else {
          for (std::size_t r = 0; r < world; ++r) {
            if (r != own()) sends[r] = device_bytes(collective.out[0]);
          }
        }
        return;
      }
      default:
        throw DeviceError(cat(collective.describe(), ": is for tensors on the CPU; move them there first"));
    }
  }

  void add(const Collective& collective, const std::vector<const void*>& terms) {
    const Buffer& out = collective.out[0];
    const double scale = collective.reduce == ReduceOp::kMean ? 1.0 / world_size() : 1.0;
    if constexpr (kHasCuda) {
      run_ordered_sum({shared_->device, queue_->stream()}, {terms, collective.dtype(), out.view.data, out.view.dtype,
                                                            out.view.numel(), collective.accumulate, scale});
    }
  }

  std::unique_ptr<Comm> owned_;
  Comm& host_;
  std::shared_ptr<Shared> shared_;
  std::unique_ptr<Comm> checks_;
  std::deque<Work> checking_;
  std::unique_ptr<SideQueue> queue_;
  std::shared_ptr<DeviceLink> link_;
  std::uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<Comm> make_device_comm(Comm& host, Device device, Health& health, DeviceCommOptions options) {
  const int rank = host.members()[static_cast<std::size_t>(host.rank())];
  std::shared_ptr<Shared> shared(new Shared{
      device, health, options.timeout, options.transport, {device, health, rank, std::move(options.give_up)}});
  return std::make_unique<DeviceComm>(host, std::move(shared));
}

}  // namespace castor::dist
