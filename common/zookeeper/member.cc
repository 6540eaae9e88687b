#include "common/zookeeper/member.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <charconv>
#include <random>
#include <utility>

#include "common/zookeeper/alive.h"

namespace ps::zk {

namespace {

constexpr std::size_t kSequenceDigits = 10;

std::string RandomHex() {
  std::random_device random;
  std::string text;
  for (int i = 0; i < 4; ++i) text += fmt::format("{:08x}", static_cast<std::uint32_t>(random()));
  return text;
}

}  // namespace

std::unique_ptr<EphemeralNode> EphemeralNode::Fixed(Session& session, std::string path,
                                                    std::string data, Callback callback) {
  Target target;
  target.directory = ParentOf(path);
  target.fixed_path = std::move(path);
  target.data = std::move(data);
  return std::make_unique<EphemeralNode>(session, std::move(target), std::move(callback));
}

std::unique_ptr<EphemeralNode> EphemeralNode::Sequential(Session& session, std::string directory,
                                                         const std::string& prefix,
                                                         std::string data, Callback callback) {
  Target target;
  target.directory = std::move(directory);
  target.name_start = prefix + RandomHex() + "-";
  target.data = std::move(data);
  return std::make_unique<EphemeralNode>(session, std::move(target), std::move(callback));
}

EphemeralNode::EphemeralNode(Session& session, Target target, Callback callback)
    : session_(session),
      target_(std::move(target)),
      callback_(std::move(callback)),
      retry_timer_(session.io()),
      alive_(std::make_shared<int>(0)) {
  watch_ = session_.AddWatch(WhileAlive(alive_, [this](const std::string&) { Reconcile(); }));
  subscription_ = session_.OnState(WhileAlive(alive_, [this](const StateEvent& event) {
    if (event.state == State::kConnected) Reconcile();
    if (event.state == State::kLost) SetPath(std::nullopt);
  }));
  Reconcile();
}

// A creation may still be on its way. What is sent here is answered after it, so that it finds the
// node; the callbacks outlive this object and use the session only.
EphemeralNode::~EphemeralNode() {
  session_.RemoveOnState(subscription_);
  session_.RemoveWatch(watch_);
  if (!session_.connected()) return;
  Session* const session = &session_;
  if (path_) {
    session->Delete(*path_, kAnyVersion, [](const Status&) {});
  } else if (!target_.fixed_path.empty()) {
    session->Get(target_.fixed_path, [session, path = target_.fixed_path](Result<NodeValue> value) {
      if (!value.ok() || value->ephemeral_owner != session->session_id()) return;
      session->Delete(path, value->version, [](const Status&) {});
    });
  } else {
    session->Children(target_.directory,
                      [session, directory = target_.directory,
                       start = target_.name_start](Result<std::vector<std::string>> names) {
                        if (!names.ok()) return;
                        for (const std::string& name : *names) {
                          if (name.compare(0, start.size(), start) != 0) continue;
                          session->Delete(Join(directory, name), kAnyVersion, [](const Status&) {});
                        }
                      });
  }
}

void EphemeralNode::Reconcile() {
  if (busy_) {
    again_ = true;
    return;
  }
  if (!session_.connected()) return;
  busy_ = true;
  again_ = false;
  if (!target_.fixed_path.empty()) return VerifyAt(target_.fixed_path);
  if (!last_path_.empty()) return VerifyAt(last_path_);
  FindByName();
}

void EphemeralNode::VerifyAt(const std::string& path) {
  session_.Get(
      path,
      WhileAlive(alive_,
                 [this, path](Result<NodeValue> value) {
                   if (!value.ok() && value.error().code != ErrorCode::kNotFound)
                     return Retry(value.error());
                   if (!value.ok()) {
                     const std::weak_ptr<void> alive = alive_;
                     SetPath(std::nullopt);
                     if (alive.expired()) return;
                     last_path_.clear();
                     if (target_.fixed_path.empty()) return FindByName();
                     return CreateNode();
                   }
                   const std::int64_t owner = value->ephemeral_owner;
                   if (owner == session_.session_id()) {
                     if (value->data == target_.data) return Done(path);
                     session_.Set(path, target_.data, value->version,
                                  WhileAlive(alive_, [this, path](const Result<std::int32_t>& set) {
                                    if (!set.ok()) return Retry(set.error());
                                    Done(path);
                                  }));
                     return;
                   }
                   if (session_.IsFormerSession(owner)) return Replace(path, value->version);
                   if (!told_foreign_) {
                     told_foreign_ = true;
                     spdlog::warn(
                         "zookeeper: {} belongs to another session, 0x{:x}; waiting until it goes",
                         path, static_cast<std::uint64_t>(owner));
                   }
                   Done(std::nullopt);  // the watch of this read tells when it goes
                 }),
      watch_);
}

void EphemeralNode::FindByName() {
  session_.Children(target_.directory,
                    WhileAlive(alive_, [this](const Result<std::vector<std::string>>& names) {
                      if (!names.ok()) {
                        if (names.error().code == ErrorCode::kNotFound) return CreateParent();
                        return Retry(names.error());
                      }
                      for (const std::string& name : *names) {
                        if (name.compare(0, target_.name_start.size(), target_.name_start) == 0) {
                          return VerifyAt(Join(target_.directory, name));
                        }
                      }
                      CreateNode();
                    }));
}

void EphemeralNode::CreateNode() {
  const bool fixed = !target_.fixed_path.empty();
  session_.Create(fixed ? target_.fixed_path : Join(target_.directory, target_.name_start),
                  target_.data, fixed ? CreateMode::kEphemeral : CreateMode::kEphemeralSequential,
                  WhileAlive(alive_, [this, fixed](const Result<std::string>& created) {
                    // It is read back in any case, which also leaves the watch.
                    if (created.ok()) return VerifyAt(*created);
                    const ErrorCode code = created.error().code;
                    if (code == ErrorCode::kConflict && fixed) return VerifyAt(target_.fixed_path);
                    if (code == ErrorCode::kNotFound) return CreateParent();
                    Retry(created.error());
                  }));
}

void EphemeralNode::CreateParent() {
  session_.EnsurePath(target_.directory, WhileAlive(alive_, [this](const Status& status) {
                        if (!status.ok()) return Retry(status.error());
                        CreateNode();
                      }));
}

void EphemeralNode::Replace(const std::string& path, std::int32_t version) {
  const bool fixed = !target_.fixed_path.empty();
  spdlog::info("zookeeper: replacing {}, which a former session of ours left", path);
  std::vector<Op> ops;
  ops.push_back(Op::Delete(path, version));
  ops.push_back(Op::Create(fixed ? target_.fixed_path : Join(target_.directory, target_.name_start),
                           target_.data,
                           fixed ? CreateMode::kEphemeral : CreateMode::kEphemeralSequential));
  session_.Multi(std::move(ops), WhileAlive(alive_, [this, fixed](const MultiOutcome& outcome) {
                   last_path_.clear();
                   if (!outcome.status.ok()) {
                     // The server may have removed the old node by itself in between.
                     if (outcome.status.error().code != ErrorCode::kNotFound) {
                       return Retry(outcome.status.error());
                     }
                   }
                   if (fixed) return VerifyAt(target_.fixed_path);
                   FindByName();
                 }));
}

void EphemeralNode::Done(std::optional<std::string> path) {
  busy_ = false;
  if (path) {
    last_path_ = *path;
    told_foreign_ = false;
  }
  if (again_) Reconcile();
  // An answer of an earlier moment says nothing once the session is lost.
  if (!session_.connected() && session_.state() != State::kSuspended) path.reset();
  SetPath(path);
}

void EphemeralNode::Retry(const Error& error) {
  busy_ = false;
  spdlog::debug("zookeeper: our node in {}: {}", target_.directory, error.message);
  retry_timer_.expires_after(session_.session_timeout() / 4);
  retry_timer_.async_wait(WhileAlive(alive_, [this](const boost::system::error_code& cancelled) {
    if (!cancelled) Reconcile();
  }));
}

// Last in whatever calls it: the callback may destroy this object.
void EphemeralNode::SetPath(const std::optional<std::string>& path) {
  if (path == path_ && (!path || told_session_ == session_.session_id())) return;
  path_ = path;
  told_session_ = session_.session_id();
  if (!callback_) return;
  const Callback callback = callback_;
  callback(path);
}

std::optional<std::int64_t> SequenceOf(const std::string& name) {
  if (name.size() < kSequenceDigits) return std::nullopt;
  const char* const last = name.data() + name.size();
  std::int64_t number = 0;
  const auto parsed = std::from_chars(last - kSequenceDigits, last, number);
  if (parsed.ec != std::errc() || parsed.ptr != last || number < 0) return std::nullopt;
  return number;
}

std::optional<std::string> LowestSequence(const std::vector<std::string>& names) {
  std::optional<std::string> lowest;
  std::int64_t lowest_number = 0;
  for (const std::string& name : names) {
    const auto number = SequenceOf(name);
    if (!number || (lowest && *number >= lowest_number)) continue;
    lowest = name;
    lowest_number = *number;
  }
  return lowest;
}

}  // namespace ps::zk
