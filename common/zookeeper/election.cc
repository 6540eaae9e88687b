#include "common/zookeeper/election.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <utility>

#include "common/error_id.h"
#include "common/zookeeper/alive.h"

namespace ps::zk {

namespace {

Result<std::uint64_t> ParseEpoch(const std::string& path, const std::string& text) {
  std::uint64_t number = 0;
  const char* const last = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), last, number);
  if (parsed.ec != std::errc() || parsed.ptr != last || number + 1 == 0) {
    return Error{ErrorId::kZooKeeperContent,
                 "ZooKeeper: " + path + " does not hold a number but '" + text.substr(0, 40) +
                     "'; write the last epoch there"};
  }
  return number;
}

}  // namespace

Election::Election(Session& session, Options options, Callback callback)
    : session_(session),
      options_(std::move(options)),
      callback_(std::move(callback)),
      retry_timer_(session.io()),
      lease_timer_(session.io()),
      alive_(std::make_shared<int>(0)) {
  watch_ = session_.AddWatch(WhileAlive(alive_, [this](const std::string&) { Check(); }));
  subscription_ = session_.OnState(WhileAlive(alive_, [this](const StateEvent& event) {
    lease_timer_.cancel();
    switch (event.state) {
      case State::kConnected: Check(); break;
      case State::kSuspended: ArmLease(); break;
      case State::kLost: StepDown(event.reason); break;
      case State::kConnecting: break;
    }
  }));
  node_ =
      EphemeralNode::Sequential(session_, options_.directory, options_.prefix, options_.data,
                                WhileAlive(alive_, [this](const std::optional<std::string>& path) {
                                  if (path) return Check();
                                  StepDown("our node in " + options_.directory + " is gone");
                                }));
}

Election::~Election() {
  session_.RemoveOnState(subscription_);
  session_.RemoveWatch(watch_);
}

void Election::Check() {
  if (busy_) {
    again_ = true;
    return;
  }
  if (!session_.connected() || !node_ || !node_->path()) return;
  busy_ = true;
  again_ = false;
  session_.Children(options_.directory,
                    WhileAlive(alive_, [this](const Result<std::vector<std::string>>& names) {
                      if (!names.ok()) return Retry(names.error());
                      Judge(*names);
                    }));
}

void Election::Judge(const std::vector<std::string>& names) {
  if (!node_->path()) return Finish();  // comes again with the node
  const std::string own_name = NameOf(*node_->path());
  const auto own = SequenceOf(own_name);
  if (!own || std::find(names.begin(), names.end(), own_name) == names.end()) return Finish();
  std::optional<std::string> predecessor;
  std::int64_t predecessor_number = -1;
  for (const std::string& name : names) {
    const auto number = SequenceOf(name);
    if (!number || *number >= *own || *number <= predecessor_number) continue;
    predecessor = name;
    predecessor_number = *number;
  }
  if (predecessor) return WatchPredecessor(Join(options_.directory, *predecessor));
  if (leadership_) return Finish();
  RaiseEpoch();
}

void Election::WatchPredecessor(const std::string& path) {
  session_.Exists(path,
                  WhileAlive(alive_,
                             [this](const Result<bool>& exists) {
                               if (!exists.ok()) return Retry(exists.error());
                               if (!*exists) again_ = true;
                               Finish();
                             }),
                  watch_);
}

void Election::RaiseEpoch() {
  session_.Get(options_.epoch_path, WhileAlive(alive_, [this](const Result<NodeValue>& value) {
                 if (!value.ok()) {
                   if (value.error().code != ErrorCode::kNotFound) return Retry(value.error());
                   return WriteEpoch(1, std::nullopt);
                 }
                 const auto number = ParseEpoch(options_.epoch_path, value->data);
                 if (!number.ok()) {
                   spdlog::error("{}", ErrorLine(number.error()));
                   return Retry(number.error());
                 }
                 WriteEpoch(*number + 1, value->version);
               }));
}

// An unknown outcome is not read back: the next try raises the number once more, which does no
// harm, as numbers need only grow.
void Election::WriteEpoch(std::uint64_t number, std::optional<std::int32_t> old_version) {
  if (!node_->path()) return Finish();
  const std::string own_path = *node_->path();
  const std::int64_t session_id = session_.session_id();
  std::vector<Op> ops;
  ops.push_back(Op::Check(own_path, kAnyVersion));
  ops.push_back(old_version ? Op::Set(options_.epoch_path, std::to_string(number), *old_version)
                            : Op::Create(options_.epoch_path, std::to_string(number)));
  session_.Multi(
      std::move(ops), WhileAlive(alive_, [this, number, old_version, own_path,
                                          session_id](const MultiOutcome& outcome) {
        if (!outcome.status.ok()) {
          const Error& error = outcome.status.error();
          if (error.code == ErrorCode::kNotFound && outcome.failed_op == std::size_t{1}) {
            session_.EnsurePath(ParentOf(options_.epoch_path),
                                WhileAlive(alive_, [this, error](const Status&) { Retry(error); }));
            return;
          }
          return Retry(error);
        }
        if (!session_.connected() || session_.session_id() != session_id ||
            node_->path() != own_path) {
          again_ = true;
          return Finish();
        }
        Leadership leadership;
        leadership.epoch = number;
        leadership.epoch_version = old_version ? outcome.versions.at(1) : 0;
        leadership.epoch_path = options_.epoch_path;
        leadership_ = leadership;
        spdlog::info("zookeeper: elected in {}, epoch {}", options_.directory, number);
        Finish();
        const Callback callback = callback_;  // it may destroy this object
        callback(leadership);
      }));
}

void Election::Finish() {
  busy_ = false;
  if (again_) Check();
}

void Election::Retry(const Error& error) {
  busy_ = false;
  spdlog::debug("zookeeper: election in {}: {}", options_.directory, error.message);
  retry_timer_.expires_after(session_.session_timeout() / 8);
  retry_timer_.async_wait(WhileAlive(alive_, [this](const boost::system::error_code& cancelled) {
    if (!cancelled) Check();
  }));
}

void Election::StepDown(const std::string& why) {
  if (!leadership_) return;
  spdlog::warn("zookeeper: no longer the leader in {}, epoch {}: {}", options_.directory,
               leadership_->epoch, why);
  leadership_.reset();
  const Callback callback = callback_;  // it may destroy this object
  callback(std::nullopt);
}

void Election::ArmLease() {
  if (!leadership_) return;
  const auto left = session_.session_timeout() * 2 / 3 - session_.since_contact();
  if (left.count() <= 0) return StepDown(session_.Trouble());
  lease_timer_.expires_after(left);
  lease_timer_.async_wait(WhileAlive(alive_, [this](const boost::system::error_code& cancelled) {
    if (!cancelled && !session_.connected()) StepDown(session_.Trouble());
  }));
}

}  // namespace ps::zk
