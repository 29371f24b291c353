// Link: ordered streams of bytes between the ranks of one group, the only thing that differs between host transports.
//
// Nothing here blocks but `wait`, and `wait` is bounded: deadlines, failures and the order of work are the business of
// Exchange (dist/exchange.h), the same for threads, shared memory and TCP.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "dist/failure.h"

namespace castor::dist {

class FlightRecorder;

/// The other end of a stream is gone. `peer` is its number in the group.
class PeerLost : public Error {
 public:
  PeerLost(int lost_peer, const std::string& why) : Error(why), peer(lost_peer) {}
  int peer;
};

/// Streams between this rank and each other rank of a group. One thread at a time uses it.
class Link {
 public:
  virtual ~Link() = default;

  virtual int rank() const = 0;
  virtual int size() const = 0;

  /// Takes some bytes on their way to `peer`; returns how many, 0 when there is no room now. Throws PeerLost.
  virtual std::size_t try_send(int peer, std::span<const std::byte> bytes) = 0;
  /// Fetches some bytes that came from `peer`; returns how many, 0 when there are none now. Throws PeerLost.
  virtual std::size_t try_receive(int peer, std::span<std::byte> into) = 0;

  /// True if bytes that came can be used where they lie.
  virtual bool lends() const { return false; }
  /// Bytes that came from `peer` and lie together, good until they are given back; empty when none are there now.
  virtual std::span<const std::byte> lent(int peer) {
    static_cast<void>(peer);
    return {};
  }
  virtual void give_back(int peer, std::size_t bytes) { static_cast<void>(peer), static_cast<void>(bytes); }

  /// Where these bytes of this rank can be read by all its peers, in a number that they understand; none if they
  /// cannot.
  virtual std::optional<std::size_t> place_of(std::span<const std::byte> bytes) const {
    static_cast<void>(bytes);
    return {};
  }
  /// Bytes of `peer` at a place that it named, to be read only. Throws PeerLost if there can be none.
  virtual const std::byte* at_peer(int peer, std::size_t place, std::size_t bytes) const {
    static_cast<void>(place), static_cast<void>(bytes);
    throw PeerLost(peer, "its memory cannot be read from here");
  }

  /// True if the other end will send and read no more, although the transport cannot see it.
  virtual bool gone(int peer) = 0;

  /// How long it is worth trying again before `wait`: nothing where a try is a system call.
  virtual std::chrono::microseconds spin() const { return std::chrono::microseconds(20); }
  /// Bytes of one rank's part of a block that large collectives are cut into: few, where what has come is used from a
  /// cache; more where each try is a system call. The same on all ranks of a group.
  virtual std::size_t window_bytes() const { return std::size_t{128} << 10; }

  /// Something that changes when any stream moves; take it before trying, hand it to `wait`.
  virtual std::uint32_t ticket() = 0;
  /// Sleeps until a stream has moved since `ticket`, at most `limit`. May return early.
  ///   sends, receives   the peers with bytes still to go, to come
  virtual void wait(std::uint32_t ticket, std::span<const int> sends, std::span<const int> receives,
                    std::chrono::milliseconds limit) = 0;
};

/// Where one rank's links come from; shared by all its groups.
class Fabric {
 public:
  virtual ~Fabric() = default;
  virtual Health& health() = 0;
  virtual FlightRecorder& recorder() = 0;
  /// Connects a new group. All members call it with equal arguments but for `rank`.
  ///   name     unique in the job
  ///   members  the job's ranks, in the group's order
  ///   rank     this rank's place among them
  /// Throws CommError or CommTimeout.
  virtual std::unique_ptr<Link> connect(const std::string& name, const std::vector<int>& members, int rank,
                                        std::chrono::milliseconds limit) = 0;
};

}  // namespace castor::dist
