// The meeting over a store: each launcher of machine n sets "join/ROUND/n" to "TOKEN END", machine 0 answers all with
// "round/ROUND". Delicate: machine 0 leaves last, or the others could not read how the job ended.
#include "dist/node_meeting.h"

#include <algorithm>
#include <sstream>

#include "core/base/error.h"
#include "core/base/log.h"
#include "dist/secret.h"
#include "dist/socket.h"

namespace castor::dist {
namespace {

constexpr std::chrono::milliseconds kSignTime{500};
constexpr std::chrono::milliseconds kGone{5'000};
constexpr std::chrono::milliseconds kFarewell{3'000};
constexpr const char* kNewcomer = "new";

/// "0", "137", "stopped 143", or "new" for a machine that comes without having taken part.
std::string text_of(const AttemptEnd* end) {
  if (end == nullptr) return kNewcomer;
  return cat(end->stopped ? "stopped " : "", end->code);
}

std::optional<AttemptEnd> end_of(const std::string& text) {
  if (text == kNewcomer) return std::nullopt;
  constexpr std::string_view kStopped = "stopped ";
  const bool stopped = text.starts_with(kStopped);
  return AttemptEnd{std::atoi(text.c_str() + (stopped ? kStopped.size() : 0)), stopped};
}

}  // namespace

int fitting_count(int present, int least, int full) {
  for (int count = std::min(present, full); count >= std::max(least, 1); --count) {
    if (full % count == 0) return count;
  }
  return std::min(present, full);
}

NodeMeeting::NodeMeeting(const RunJobOptions& options, StopSignals& signals)
    : options_(options), signals_(signals), token_(JobSecret::random().text()) {
  const JobSecret secret(options.secret + " launchers");
  try {
    if (leads()) server_ = std::make_unique<StoreServer>(options.store_host, options.store_port, secret);
    const auto deadline = Clock::now() + options.join_timeout;
    store_ = std::make_unique<Store>(options.store_host, options.store_port, secret, deadline);
    if (leads()) store_->set("job", token_);
    job_id_ = store_->wait("job", options.join_timeout);
  } catch (const SocketError& error) {
    throw CommError(
        cat("the meeting of the machines at ", options.store_host, ":", options.store_port, ": ", error.what()), -1,
        "join", 0);
  }
  beating_ = std::thread([this] { beat(); });
}

NodeMeeting::~NodeMeeting() {
  closing_ = true;
  beating_.join();
}

void NodeMeeting::beat() {
  try {
    const JobSecret secret(options_.secret + " launchers");
    Store own(options_.store_host, options_.store_port, secret, Clock::now() + options_.join_timeout);
    while (!closing_) {
      own.add(cat("sign/", options_.node_rank), 1);
      for (auto left = kSignTime; left.count() > 0 && !closing_; left -= std::chrono::milliseconds(50)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    }
  } catch (const SocketError&) {
    // Machine 0 is gone: the next question to it says so.
  }
}

std::optional<std::string> NodeMeeting::look(const std::string& key) {
  try {
    return store_->wait(key, std::chrono::milliseconds(0));
  } catch (const CommTimeout&) {
    return std::nullopt;
  }
}

void NodeMeeting::join(int round, const AttemptEnd* before) {
  store_->set(cat("join/", round, "/", options_.node_rank), cat(token_, " ", text_of(before)));
}

void NodeMeeting::turn() {
  const int signal = signals_.wait_a_turn();
  if (signal != 0) signal_ = signal;
}

void NodeMeeting::see_signs() {
  for (int node = 0; node < options_.nodes; ++node) {
    const std::int64_t count = store_->add(cat("sign/", node), 0);
    Sign& sign = signs_[node];
    if (count != sign.count) sign = {count, Clock::now()};
  }
}

bool NodeMeeting::lives(int node) const {
  const auto found = signs_.find(node);
  return found != signs_.end() && found->second.count > 0 && Clock::now() - found->second.at < kGone;
}

std::map<int, NodeMeeting::Joined> NodeMeeting::gather(int round) {
  std::map<int, Joined> joined;
  const auto began = Clock::now();
  std::optional<Clock::time_point> enough_at;
  Clock::time_point next_look = began;
  while (signal_ == 0) {
    turn();
    if (Clock::now() < next_look) continue;
    next_look = Clock::now() + std::chrono::milliseconds(100);
    see_signs();
    bool waits = false;
    for (int node = 0; node < options_.nodes; ++node) {
      if (!joined.contains(node)) {
        if (const auto said = look(cat("join/", round, "/", node))) {
          const std::size_t space = said->find(' ');
          joined[node] = {said->substr(0, space), end_of(said->substr(std::min(space + 1, said->size())))};
          if (joined[node].end && joined[node].end->stopped) return joined;
        }
      }
      waits = waits || (!joined.contains(node) && lives(node));
    }
    const auto present = static_cast<int>(joined.size());
    if (present == options_.nodes) break;
    const bool is_enough = present >= options_.least_nodes;
    if (is_enough && !enough_at) enough_at = Clock::now();
    // At first others may still be starting; later one that gives no sign is gone.
    const auto patience = round == 0 ? options_.last_call : std::chrono::milliseconds(0);
    if (is_enough && !waits && Clock::now() - *enough_at >= patience) break;
    if (Clock::now() - began >= options_.join_timeout) {
      if (is_enough) break;
      throw CommError(cat("", present, " of at least ", options_.least_nodes, " machines came within ",
                          options_.join_timeout.count() / 1000,
                          " s; start castor run on the others, or allow fewer "
                          "with --nnodes MIN:MAX"),
                      -1, "join", 0);
    }
  }
  return joined;
}

std::string NodeMeeting::verdict(int round, const std::map<int, Joined>& joined) {
  int failed_code = 0;
  bool stops = signal_ != 0;
  if (stops) failed_code = 128 + signal_;
  for (const auto& [node, one] : joined) {
    if (!one.end) continue;
    if (one.end->stopped && !stops) {
      stops = true;
      failed_code = one.end->code;
    }
    if (failed_code == 0) failed_code = one.end->code;
  }
  std::string lost;
  for (const auto& [node, token] : members_) {
    const auto found = joined.find(node);
    if (found == joined.end() || found->second.token != token) lost += cat(lost.empty() ? "" : ", ", node);
  }
  if (!lost.empty() && failed_code == 0) failed_code = 1;
  if (stops || (round > 0 && failed_code == 0)) return cat("end ", failed_code);
  if (!lost.empty()) logger().warning("machine ", lost, " of the job is gone");
  if (round > options_.max_restarts) return cat("end ", failed_code);

  const int count = fitting_count(static_cast<int>(joined.size()), options_.least_nodes, options_.nodes);
  if (round > 0) {
    logger().warning("the job failed with code ", failed_code, "; starting it again on ", count, " of ", options_.nodes,
                     " machines, ", round, " of ", options_.max_restarts);
  } else if (count < options_.nodes) {
    logger().warning("the job starts on ", count, " of ", options_.nodes, " machines");
  }
  rank_server_ =
      std::make_unique<StoreServer>(options_.store_host, 0, JobSecret(cat(options_.secret, " attempt ", round)));
  members_.clear();
  std::string text = cat("run ", rank_server_->port());
  for (const auto& [node, one] : joined) {
    if (static_cast<int>(members_.size()) == count) break;
    members_[node] = one.token;
    text += " " + one.token;
  }
  return text;
}

void NodeMeeting::decide(int round) { store_->set(cat("round/", round), verdict(round, gather(round))); }

std::optional<AttemptPlace> NodeMeeting::next(const AttemptEnd* before) {
  try {
    return meet(before);
  } catch (const SocketError& error) {
    throw CommError(
        leads() ? cat("the store of the job: ", error.what())
                : cat("the launcher of machine 0 at ", options_.store_host, ":", options_.store_port,
                      ", which decides about restarts, is lost (", error.what(), "); start the job again with it"),
        -1, "join", 0);
  }
}

std::optional<AttemptPlace> NodeMeeting::meet(const AttemptEnd* before) {
  for (;; ++round_, before = nullptr) {
    join(round_, before);
    if (leads()) decide(round_);
    std::optional<std::string> said;
    while (!(said = look(cat("round/", round_)))) {
      turn();
      if (signal_ == 0) continue;
      code_ = 128 + signal_;
      const AttemptEnd stopped{code_, true};
      if (before != nullptr) join(round_, &stopped);  // its stop is the job's
      return std::nullopt;
    }
    std::istringstream fields(*said);
    std::string kind;
    fields >> kind;
    if (kind == "end") {
      fields >> code_;
      farewell();
      return std::nullopt;
    }
    AttemptPlace place;
    place.number = round_;
    place.processes = options_.processes;
    place.store_host = options_.store_host;
    place.secret = cat(options_.secret, " attempt ", round_);
    fields >> place.store_port;
    std::optional<int> own;
    std::string token;
    for (place.nodes = 0; fields >> token; ++place.nodes) {
      if (token == token_) own = place.nodes;
    }
    if (own) {
      place.group_rank = *own;
      ++round_;
      return place;
    }
    logger().info("the job goes on without this machine, which waits for the next attempt");
  }
}

void NodeMeeting::farewell() {
  store_->add("left", 1);
  if (!leads()) return;
  const auto deadline = Clock::now() + kFarewell;
  const auto others = [this] {
    std::int64_t count = 0;
    for (int node = 0; node < options_.nodes; ++node) count += lives(node) ? 1 : 0;
    return count;
  };
  while (Clock::now() < deadline && store_->add("left", 0) < others()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace castor::dist
