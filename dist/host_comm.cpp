// Order, agreement and failure of collectives. Delicate: after a failure the streams may hold half a message, so the
// group is never used again; Health says so to every later call.
#include "dist/host_comm.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <optional>

#include "core/device/trace.h"
#include "dist/algorithms.h"
#include "dist/direct.h"
#include "dist/flight_recorder.h"

namespace castor::dist {

struct HostComm::HostWork final : Work::State {
  mutable std::mutex mutex;
  std::condition_variable changed;
  bool is_done = false;
  std::exception_ptr error;
  std::string text;
  std::uint64_t sequence = 0;
  int rank = 0;

  void finish(std::exception_ptr failed) {
    {
      const std::lock_guard lock(mutex);
      is_done = true;
      error = std::move(failed);
    }
    changed.notify_all();
  }

  bool done() const override {
    const std::lock_guard lock(mutex);
    return is_done;
  }

  void wait(std::optional<std::chrono::milliseconds> limit) override {
    std::unique_lock lock(mutex);
    if (!limit) {
      changed.wait(lock, [&] { return is_done; });
    } else if (!changed.wait_for(lock, *limit, [&] { return is_done; })) {
      throw CommTimeout(cat(text, " is not done after ", limit->count(), " ms; it goes on"), rank, "wait", sequence);
    }
    if (error) std::rethrow_exception(error);
  }
};

struct HostComm::Job {
  Collective collective;
  Announcement said;
  std::uint64_t record = 0;
  std::shared_ptr<HostWork> state;  // null for a blocking call on the caller's thread
};

HostComm::HostComm(std::shared_ptr<Fabric> fabric, std::unique_ptr<Link> link, std::string name,
                   std::vector<int> members, const CommOptions& options)
    : fabric_(std::move(fabric)),
      link_(std::move(link)),
      name_(std::move(name)),
      members_(std::move(members)),
      options_(options),
      sent_(members_.size()),
      received_(members_.size()) {}

HostComm::~HostComm() {
  std::size_t left = 0;
  {
    const std::lock_guard lock(mutex_);
    left = queue_.size() + (busy_ ? 1 : 0);
    closing_ = true;
  }
  if (left > 0) abort(cat("group ", name_, " was given up with ", left, " collectives under way"));
  changed_.notify_all();
  if (worker_.joinable()) worker_.join();
}

std::unique_ptr<HostComm> HostComm::connect_world(std::shared_ptr<Fabric> fabric, int rank, int world_size,
                                                  const CommOptions& options) {
  std::vector<int> members(static_cast<std::size_t>(world_size));
  std::iota(members.begin(), members.end(), 0);
  auto link = fabric->connect("world", members, rank, options.timeout);
  return std::make_unique<HostComm>(std::move(fabric), std::move(link), "world", std::move(members), options);
}

HostComm::Job HostComm::number(Collective collective) {
  std::uint64_t* counter = &sequence_;
  if (collective.op == CollectiveOp::kSend) counter = &sent_[static_cast<std::size_t>(collective.root)];
  if (collective.op == CollectiveOp::kRecv) counter = &received_[static_cast<std::size_t>(collective.root)];
  Job job;
  job.said = announce(collective, name_, (*counter)++);
  job.record = fabric_->recorder().add(name_, collective.describe(), job.said.sequence);
  job.collective = std::move(collective);
  return job;
}

std::shared_ptr<HostComm::HostWork> HostComm::queue_locked(Job job) {
  auto state = std::make_shared<HostWork>();
  state->text = job.said.describe();
  state->sequence = job.said.sequence;
  state->rank = members_[static_cast<std::size_t>(rank())];
  job.state = state;
  queue_.push_back(std::move(job));
  if (!worker_.joinable()) worker_ = std::thread([this] { work_loop(); });
  changed_.notify_all();
  return state;
}

Work HostComm::submit(Collective collective) {
  const std::lock_guard lock(mutex_);
  return Work(queue_locked(number(std::move(collective))));
}

void HostComm::execute(Collective collective) {
  std::unique_lock lock(mutex_);
  Job job = number(std::move(collective));
  if (busy_ || !queue_.empty()) {
    const Work work(queue_locked(std::move(job)));
    lock.unlock();
    return work.wait();
  }
  busy_ = true;
  lock.unlock();
  std::exception_ptr error = perform_caught(job);
  lock.lock();
  busy_ = false;
  changed_.notify_all();
  lock.unlock();
  if (error) std::rethrow_exception(error);
}

void HostComm::work_loop() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return (!queue_.empty() && !busy_) || (closing_ && queue_.empty()); });
    if (queue_.empty()) return;
    Job job = std::move(queue_.front());
    queue_.pop_front();
    busy_ = true;
    lock.unlock();
    std::exception_ptr error = perform_caught(job);
    job.collective = {};  // whoever waited may count on its tensors' memory being free
    lock.lock();
    busy_ = false;
    changed_.notify_all();
    // Last, so that whoever waited finds the group idle.
    job.state->finish(std::move(error));
  }
}

std::exception_ptr HostComm::perform_caught(Job& job) {
  try {
    perform(job);
  } catch (...) {
    return std::current_exception();
  }
  return nullptr;
}

void HostComm::perform(Job& job) {
  FlightRecorder& recorder = fabric_->recorder();
  recorder.started(job.record);
  std::optional<TraceSpan> span;
  if (is_tracing()) span.emplace(job.collective.describe(), "collective", nullptr, "collectives of group " + name_);
  try {
    transfer(job);
    recorder.ended(job.record, true);
  } catch (const CommError& error) {
    recorder.ended(job.record, false);
    recorder.dump(fabric_->health().failure());
    throw;
  }
}

void HostComm::transfer(const Job& job) {
  const Collective& collective = job.collective;
  const Health& health = fabric_->health();
  if (health.failed()) throw_elsewhere(job, health.failure());
  const auto limit = collective.timeout.count() > 0 ? collective.timeout : options_.timeout;
  Exchange exchange(*link_, health, Exchange::Clock::now() + limit);
  const bool sends = collective.op == CollectiveOp::kSend;
  const bool receives = collective.op == CollectiveOp::kRecv;
  std::vector<Announcement> out(members_.size(), job.said);
  std::vector<Announcement> said(members_.size(), job.said);
  const bool offered = offer(collective, *link_, out);
  std::vector<const std::byte*> at_peers;
  for (int peer = 0; peer < world_size(); ++peer) {
    if (peer == rank() || ((sends || receives) && peer != collective.root)) continue;
    Announcement& own = out[static_cast<std::size_t>(peer)];
    own.bytes = pair_bytes(collective, rank(), peer).sent;
    if (!receives) exchange.send(peer, std::as_bytes(std::span(&own, 1)));
    if (!sends) exchange.receive(peer, std::as_writable_bytes(std::span(&said[static_cast<std::size_t>(peer)], 1)));
  }
  bool agreed = false;
  const std::function<void()> agree_now = [&] {
    if (agreed) return;
    exchange.finish_receives();
    agree(job, said);
    agreed = true;
    if (offered) at_peers = find_offers(collective, *link_, said);
  };
  AlgorithmContext context{rank(), world_size(), exchange, scratch_, agree_now, offered, at_peers};
  try {
    run_algorithm(collective, context);
  } catch (const PeerLost& lost) {
    fail(job, {lost.peer}, cat("is gone: ", lost.what()), false);
  } catch (const PeersLate& late) {
    fail(job, late.peers,
         cat(agreed ? "stopped in the middle of it: no byte" : "did not come to it", " within ", limit.count(), " ms"),
         true);
  } catch (const JobFailed&) {
    throw_elsewhere(job, health.failure());
  }
}

void HostComm::agree(const Job& job, std::span<const Announcement> said) {
  const Collective& collective = job.collective;
  if (collective.op == CollectiveOp::kRecv) {
    // The other side says send; everything else must be alike.
    const auto peer = static_cast<std::size_t>(collective.root);
    Announcement expected = job.said;
    expected.op = static_cast<std::uint8_t>(CollectiveOp::kSend);
    if (said[peer].same(expected)) return;
    Failure failure{members_[peer], "recv", job.said.sequence, false, {}};
    failure.text = cat("rank ", members_[static_cast<std::size_t>(rank())], " waits in ", job.said.describe(),
                       " for rank ", members_[peer], " of group ", name_, ", which calls ", said[peer].describe());
    report(job, failure);
  }
  const Failure disagreement = find_disagreement(said, members_, rank(), name_);
  if (!disagreement.text.empty()) report(job, disagreement);
  for (int peer = 0; peer < world_size(); ++peer) {
    const auto at = static_cast<std::size_t>(peer);
    const std::size_t expected = pair_bytes(collective, rank(), peer).received;
    if (peer == rank() || said[at].bytes == expected) continue;
    Failure failure{members_[at], std::string(collective_name(collective.op)), job.said.sequence, false, {}};
    failure.text = cat(job.said.describe(), " of group ", name_, ": rank ", members_[at], " sends ", said[at].bytes,
                       " bytes to rank ", members_[static_cast<std::size_t>(rank())], ", which expects ", expected);
    report(job, failure);
  }
}

void HostComm::fail(const Job& job, std::vector<int> peers, const std::string& what, bool late) {
  Failure failure{members_[static_cast<std::size_t>(peers.at(0))],
                  std::string(collective_name(job.collective.op)),
                  job.said.sequence,
                  late,
                  {}};
  for (const int peer : peers) {
    failure.text += cat(failure.text.empty() ? (peers.size() == 1 ? "rank " : "ranks ") : ", ",
                        members_[static_cast<std::size_t>(peer)]);
  }
  failure.text += cat(" ", what, "; in ", job.said.describe(), " of group ", name_);
  report(job, failure);
}

void HostComm::throw_elsewhere(const Job& job, Failure failure) {
  if (failure.op.empty()) {
    failure.op = collective_name(job.collective.op);
    failure.sequence = job.said.sequence;
  }
  throw_failure(failure, cat(job.said.describe(), " of group ", name_));
}

void HostComm::report(const Job& job, const Failure& failure) {
  const Failure counts = fabric_->health().report(failure);
  if (counts.text == failure.text) throw_failure(counts);
  throw_elsewhere(job, counts);
}

std::unique_ptr<Comm> HostComm::split(int color, int key) {
  const auto world = static_cast<std::size_t>(world_size());
  std::vector<std::int64_t> wishes(2 * world);
  const std::vector<std::int64_t> own{color, key};
  View mine{const_cast<std::int64_t*>(own.data()), DType::i64, 1, {2}, {1}};
  View all{wishes.data(), DType::i64, 1, {static_cast<std::int64_t>(wishes.size())}, {1}};
  all_gather(mine, all, "split");
  const int number = splits_++;
  std::vector<int> places;
  for (std::size_t r = 0; r < world; ++r) {
    if (wishes[2 * r] == color) places.push_back(static_cast<int>(r));
  }
  if (color < 0) return nullptr;
  std::ranges::stable_sort(places, {}, [&](int r) { return wishes[2 * static_cast<std::size_t>(r) + 1]; });
  std::vector<int> members;
  for (const int place : places) members.push_back(members_[static_cast<std::size_t>(place)]);
  const auto own_place = static_cast<int>(std::ranges::find(places, rank()) - places.begin());
  const std::string group = cat(name_, "/", number, ":", color);
  auto link = fabric_->connect(group, members, own_place, options_.timeout);
  return std::make_unique<HostComm>(fabric_, std::move(link), group, std::move(members), options_);
}

void HostComm::abort(const std::string& reason) noexcept {
  try {
    const int self = members_[static_cast<std::size_t>(rank())];
    fabric_->health().report({self, "abort", 0, false, cat("rank ", self, " gave up: ", reason)});
  } catch (...) {
    // Out of memory while failing: the others find out by their deadlines.
  }
}

}  // namespace castor::dist
