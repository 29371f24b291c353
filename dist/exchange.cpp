// The loop that moves bytes. Delicate: it spins a little before it sleeps, since the answer of a rank on another core
// is often nearer than a sleep and a wake; and only a little, since ranks may outnumber cores: on a busy machine a
// thread that sleeps is run again sooner than one that spins or yields.
#include "dist/exchange.h"

#include <algorithm>
#include <cstdint>

namespace castor::dist {
namespace {
constexpr std::chrono::milliseconds kNap{50};  // how soon a failure elsewhere is noticed
}  // namespace

Exchange::Exchange(Link& link, const Health& health, Clock::time_point deadline)
    : link_(link), health_(health), deadline_(deadline), streams_(static_cast<std::size_t>(link.size())) {}

void Exchange::send(int peer, std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  streams_[static_cast<std::size_t>(peer)].sends.push_back(bytes);
  ++pending_sends_;
}

void Exchange::receive(int peer, std::span<std::byte> into) {
  if (into.empty()) return;
  streams_[static_cast<std::size_t>(peer)].receives.push_back(into);
  ++pending_receives_;
}

bool Exchange::push(int peer) {
  auto& queue = streams_[static_cast<std::size_t>(peer)].sends;
  bool moved = false;
  while (!queue.empty()) {
    const std::size_t taken = link_.try_send(peer, queue.front());
    moved = moved || taken > 0;
    queue.front() = queue.front().subspan(taken);
    if (!queue.front().empty()) break;
    queue.pop_front();
    --pending_sends_;
  }
  return moved;
}

bool Exchange::pull(int peer) {
  auto& queue = streams_[static_cast<std::size_t>(peer)].receives;
  bool moved = false;
  while (!queue.empty()) {
    const std::size_t came = link_.try_receive(peer, queue.front());
    moved = moved || came > 0;
    queue.front() = queue.front().subspan(came);
    if (!queue.front().empty()) break;
    queue.pop_front();
    --pending_receives_;
  }
  return moved;
}

bool Exchange::move() {
  bool moved = false;
  // Start behind the own rank, so that not everyone talks to rank 0 first.
  for (int step = 1; step < link_.size(); ++step) {
    const int peer = (link_.rank() + step) % link_.size();
    moved = push(peer) || moved;
    moved = pull(peer) || moved;
  }
  return moved;
}

void Exchange::collect_pending() {
  sending_.clear();
  receiving_.clear();
  for (int peer = 0; peer < link_.size(); ++peer) {
    const Stream& stream = streams_[static_cast<std::size_t>(peer)];
    if (!stream.sends.empty()) sending_.push_back(peer);
    if (!stream.receives.empty() || stream.awaited) receiving_.push_back(peer);
  }
}

int Exchange::find_gone() {
  for (const auto* pending : {&receiving_, &sending_}) {
    for (const int peer : *pending) {
      if (link_.gone(peer)) return peer;
    }
  }
  return -1;
}

template <class Done>
void Exchange::wait_until(Done done) {
  Clock::time_point idle_since{};
  while (!done()) {
    const std::uint32_t ticket = link_.ticket();
    if (move() || done()) {
      idle_since = {};
      continue;
    }
    const auto now = Clock::now();
    if (idle_since == Clock::time_point{}) idle_since = now;
    if (now - idle_since < link_.spin()) {
      __builtin_ia32_pause();
      continue;
    }
    if (health_.failed()) throw JobFailed();
    collect_pending();
    const int gone = find_gone();
    if (gone >= 0) {
      if (move() || done()) continue;  // its last bytes had just come
      throw PeerLost(gone, "it has left the job");
    }
    if (now >= deadline_) throw PeersLate(receiving_.empty() ? sending_ : receiving_, "no word before the deadline");
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - now);
    link_.wait(ticket, sending_, receiving_, std::min(kNap, left + std::chrono::milliseconds(1)));
  }
}

std::size_t Exchange::borrow(std::size_t item, std::size_t most, std::vector<const void*>& pieces) {
  if (!link_.lends()) return 0;
  std::size_t length = most;
  pieces.assign(streams_.size(), nullptr);
  for (int peer = 0; peer < link_.size(); ++peer) {
    if (peer == link_.rank()) continue;
    std::span<const std::byte> lent = link_.lent(peer);
    if (lent.empty()) {
      bool& awaited = streams_[static_cast<std::size_t>(peer)].awaited;
      awaited = true;
      wait_until([&] { return !(lent = link_.lent(peer)).empty(); });
      awaited = false;
    }
    pieces[static_cast<std::size_t>(peer)] = lent.data();
    length = std::min(length, lent.size());
    if (reinterpret_cast<std::uintptr_t>(lent.data()) % item != 0) return 0;
  }
  return length / item * item;
}

void Exchange::give_back(std::size_t bytes) {
  for (int peer = 0; peer < link_.size(); ++peer) {
    if (peer != link_.rank()) link_.give_back(peer, bytes);
  }
}

void Exchange::finish_receives() {
  wait_until([this] { return pending_receives_ == 0; });
}

void Exchange::finish() {
  wait_until([this] { return pending_receives_ == 0 && pending_sends_ == 0; });
}

}  // namespace castor::dist
