// Challenge and response: gate sends greeting + challenge; visitor sends its own challenge + proof; gate sends its
// proof.
#include "dist/gate.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "core/base/log.h"

namespace castor::dist {
namespace {

constexpr std::string_view kGreeting = "CASTOR01";
constexpr std::size_t kMostVisitors = 128;
constexpr int kMostAccepted = 256;  // in a step: a flood of strangers must not keep the loop from those who belong here
constexpr std::chrono::seconds kPatience{5};
constexpr std::string_view kVisitorSide = "castor visitor";
constexpr std::string_view kGateSide = "castor gate";

}  // namespace

Gate::Gate(const std::string& address, std::uint16_t port, JobSecret secret, std::string what)
    : listener_(address, port), secret_(std::move(secret)), what_(std::move(what)) {}

void Gate::add_wanted(std::vector<Readiness>& wanted, Clock::time_point& deadline) const {
  wanted.push_back({listener_.descriptor(), true, false});
  for (const Visitor& visitor : visitors_) {
    wanted.push_back({visitor.socket.descriptor(), true, false});
    deadline = std::min(deadline, visitor.deadline);
  }
}

void Gate::refuse(const Visitor& visitor, const std::string& why) {
  // Every one at first, then fewer and fewer: a flood must not fill the log.
  if (++refused_ <= 8 || std::has_single_bit(refused_)) {
    logger().warning(what_, ": dropped a connection from ", visitor.socket.peer(), ": ", why, " (", refused_,
                     " dropped so far)");
  }
}

bool Gate::advance(Visitor& visitor) {
  visitor.have += visitor.socket.try_read(std::span(visitor.answer).subspan(visitor.have));
  if (visitor.have < visitor.answer.size()) return false;
  Challenge theirs;
  Proof proof;
  std::memcpy(theirs.data(), visitor.answer.data(), theirs.size());
  std::memcpy(proof.data(), visitor.answer.data() + theirs.size(), proof.size());
  if (!equal_proofs(proof, secret_.prove(kVisitorSide, visitor.challenge, theirs))) {
    throw SocketError("it does not know the job's secret");
  }
  const Proof own = secret_.prove(kGateSide, visitor.challenge, theirs);
  if (visitor.socket.try_write(own) != own.size()) throw SocketError("it does not read");
  return true;
}

std::vector<Socket> Gate::step() {
  for (int accepted = 0; accepted < kMostAccepted; ++accepted) {
    auto socket = listener_.try_accept();
    if (!socket) break;
    if (visitors_.size() >= kMostVisitors) {
      refuse(visitors_.front(), "too many others came after it");
      visitors_.pop_front();
    }
    Visitor visitor{std::move(*socket), random_challenge(), {}, 0, Clock::now() + kPatience};
    std::array<std::byte, kGreeting.size() + sizeof(Challenge)> hello;
    std::memcpy(hello.data(), kGreeting.data(), kGreeting.size());
    std::memcpy(hello.data() + kGreeting.size(), visitor.challenge.data(), visitor.challenge.size());
    try {
      if (visitor.socket.try_write(hello) == hello.size()) visitors_.push_back(std::move(visitor));
    } catch (const SocketError& error) {
      refuse(visitor, error.what());
    }
  }
  std::vector<Socket> proven;
  for (auto visitor = visitors_.begin(); visitor != visitors_.end();) {
    bool leaves = true;
    try {
      if (advance(*visitor)) {
        proven.push_back(std::move(visitor->socket));
      } else if (Clock::now() >= visitor->deadline) {
        refuse(*visitor, "it said too little in 5 s");
      } else {
        leaves = false;
      }
    } catch (const SocketError& error) {
      refuse(*visitor, error.what());
    }
    visitor = leaves ? visitors_.erase(visitor) : std::next(visitor);
  }
  return proven;
}

Socket connect_through_gate(const std::string& host, std::uint16_t port, const JobSecret& secret,
                            Clock::time_point deadline, const Look& look) {
  Socket socket = Socket::connect(host, port, deadline, look);
  std::array<std::byte, kGreeting.size() + sizeof(Challenge)> hello;
  socket.read_all(hello, deadline, look);
  if (std::memcmp(hello.data(), kGreeting.data(), kGreeting.size()) != 0) {
    throw SocketError(cat(socket.peer(), " is not a port of a Castor job"));
  }
  Challenge theirs;
  std::memcpy(theirs.data(), hello.data() + kGreeting.size(), theirs.size());
  const Challenge own = random_challenge();
  const Proof proof = secret.prove(kVisitorSide, theirs, own);
  socket.write_all(own, deadline, look);
  socket.write_all(proof, deadline, look);
  Proof answer;
  try {
    socket.read_all(answer, deadline, look);
  } catch (const SocketError& error) {
    throw SocketError(cat(error.what(), ": it did not accept this job's secret"));
  }
  if (!equal_proofs(answer, secret.prove(kGateSide, theirs, own))) {
    throw SocketError(cat(socket.peer(), " does not know the job's secret"));
  }
  return socket;
}

}  // namespace castor::dist
