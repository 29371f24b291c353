// Exchange: moves bytes to and from all ranks of a group at once, within a deadline.
//
// A collective queues what goes to each peer and what comes from each, in the order of the streams, and then asks for
// the bytes to have come. Sends go on while receives are waited for, so no order of ranks can lock up. Delicate: queued
// spans must stay valid until `finish`; a rank that fails elsewhere ends every wait here through Health.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <span>
#include <vector>

#include "dist/link.h"

namespace castor::dist {

/// Peers that kept others waiting beyond the deadline, by their numbers in the group.
class PeersLate : public Error {
 public:
  PeersLate(std::vector<int> late_peers, const std::string& text) : Error(text), peers(std::move(late_peers)) {}
  std::vector<int> peers;
};

class Exchange {
 public:
  using Clock = std::chrono::steady_clock;

  /// Both must outlive it.
  Exchange(Link& link, const Health& health, Clock::time_point deadline);

  /// Link::window_bytes.
  std::size_t window_bytes() const { return link_.window_bytes(); }
  /// Queues bytes on their way to another rank.
  void send(int peer, std::span<const std::byte> bytes);
  /// Queues room for bytes from another rank.
  void receive(int peer, std::span<std::byte> into);
  /// Moves bytes until all receives queued so far are filled. Throws PeerLost, PeersLate, JobFailed.
  void finish_receives();
  /// Waits until the next bytes of all other ranks have come and lends them where they lie; no receives may be queued.
  ///   item    bytes of an element
  ///   most    bytes wanted of each rank, a multiple of `item`
  ///   pieces  becomes one start of bytes a peer (none for the own rank)
  /// Returns how many bytes of each are lent, whole and aligned elements, to be given back before anything else is
  /// received; 0 where the transport does not lend, or the next element does not lie as it must: receive it then.
  /// Throws PeerLost, PeersLate, JobFailed.
  std::size_t borrow(std::size_t item, std::size_t most, std::vector<const void*>& pieces);
  void give_back(std::size_t bytes);
  /// Moves bytes until everything queued has gone and come. Throws the same.
  void finish();

 private:
  struct Stream {
    std::deque<std::span<const std::byte>> sends;
    std::deque<std::span<std::byte>> receives;
    bool awaited = false;  // `borrow` waits for it
  };
  bool move();
  bool push(int peer);
  bool pull(int peer);
  template <class Done>
  void wait_until(Done done);
  void collect_pending();
  int find_gone();  // a pending peer that has left, or -1

  Link& link_;
  const Health& health_;
  Clock::time_point deadline_;
  std::vector<Stream> streams_;  // by peer
  std::size_t pending_sends_ = 0;
  std::size_t pending_receives_ = 0;
  std::vector<int> sending_;  // peers with pending sends, receives: filled before a wait
  std::vector<int> receiving_;
};

}  // namespace castor::dist
