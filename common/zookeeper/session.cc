#include "common/zookeeper/session.h"

#include <algorithm>
#include <utility>

#include "common/zookeeper/session_impl.h"

namespace ps::zk {

using std::chrono::milliseconds;

namespace {

// A Multi reports ZRUNTIMEINCONSISTENCY for the operations that were not at fault.
std::optional<std::size_t> FirstFailed(const std::vector<zoo_op_result_t>& results) {
  for (std::size_t i = 0; i < results.size(); ++i) {
    if (results[i].err != ZOK && results[i].err != ZRUNTIMEINCONSISTENCY) return i;
  }
  return std::nullopt;
}

const char* KindName(Op::Kind kind) {
  switch (kind) {
    case Op::Kind::kCheck: return "check";
    case Op::Kind::kCreate: return "create";
    case Op::Kind::kSet: return "set";
    case Op::Kind::kDelete: return "delete";
  }
  return "?";
}

}  // namespace

const char* StateName(State state) {
  switch (state) {
    case State::kConnecting: return "connecting";
    case State::kConnected: return "connected";
    case State::kSuspended: return "suspended";
    case State::kLost: return "lost";
  }
  return "?";
}

Op Op::Check(std::string path, std::int32_t version) {
  Op op;
  op.kind = Kind::kCheck;
  op.path = std::move(path);
  op.version = version;
  return op;
}

Op Op::Create(std::string path, std::string data, CreateMode mode) {
  Op op;
  op.kind = Kind::kCreate;
  op.path = std::move(path);
  op.data = std::move(data);
  op.mode = mode;
  return op;
}

Op Op::Set(std::string path, std::string data, std::int32_t version) {
  Op op;
  op.kind = Kind::kSet;
  op.path = std::move(path);
  op.data = std::move(data);
  op.version = version;
  return op;
}

Op Op::Delete(std::string path, std::int32_t version) {
  Op op;
  op.kind = Kind::kDelete;
  op.path = std::move(path);
  op.version = version;
  return op;
}

Session::Session(boost::asio::io_context& io, Options options)
    : impl_(std::make_shared<Impl>(io, std::move(options))) {}
Session::~Session() { Close(); }
Status Session::Start() { return impl_->Start(); }
void Session::Close() { impl_->Close(); }

Session::SubscriptionId Session::OnState(StateCallback callback) {
  const SubscriptionId id = ++impl_->last_id;
  impl_->subscribers.emplace(id, std::move(callback));
  return id;
}
void Session::RemoveOnState(SubscriptionId id) { impl_->subscribers.erase(id); }

State Session::state() const { return impl_->state; }
std::int64_t Session::session_id() const { return impl_->session_id; }
milliseconds Session::session_timeout() const { return impl_->SessionTimeout(); }
milliseconds Session::since_contact() const {
  return std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() -
                                                  impl_->contact);
}
bool Session::IsFormerSession(std::int64_t id) const {
  const auto& former = impl_->former_sessions;
  return std::find(former.begin(), former.end(), id) != former.end();
}
std::string Session::Trouble() const { return impl_->Trouble(); }
const Session::Options& Session::options() const { return impl_->options; }
boost::asio::io_context& Session::io() const { return impl_->io; }
Session::Credentials Session::credentials() const {
  Credentials credentials;
  credentials.session_id = impl_->session_id;
  credentials.password = impl_->password;
  return credentials;
}

namespace {

void* WatchContext(Session::WatchId id) {
  // A number that only OnWatch reads: nothing for a late event to find freed.
  const auto number = static_cast<std::uintptr_t>(id);
  return reinterpret_cast<void*>(number);  // NOLINT(performance-no-int-to-ptr)
}

}  // namespace

void Session::Get(const std::string& path, GetCallback callback, WatchId watch) {
  Operation operation;
  operation.what = "get " + path;
  operation.finish = [callback = std::move(callback)](Answer& answer, const Error* error) {
    if (error != nullptr) return callback(*error);
    NodeValue value;
    value.data = std::move(answer.text);
    value.version = answer.stat.version;
    value.created_zxid = answer.stat.czxid;
    value.modified_zxid = answer.stat.mzxid;
    value.ephemeral_owner = answer.stat.ephemeralOwner;
    callback(std::move(value));
  };
  impl_->Submit(
      std::move(operation),
      [impl = impl_.get(), path, watch](zhandle_t* client, Impl::Completion* completion) {
        return zoo_awget(client, impl->FullPath(path).c_str(),
                         watch == 0 ? nullptr : &Impl::OnWatch, WatchContext(watch), &Impl::OnData,
                         completion);
      },
      Impl::Refusal(path, 0));
}

void Session::Exists(const std::string& path, ExistsCallback callback, WatchId watch) {
  Operation operation;
  operation.what = "exists " + path;
  operation.finish = [callback = std::move(callback)](Answer& answer, const Error* error) {
    if (answer.rc == ZNONODE) return callback(false);
    if (error != nullptr) return callback(*error);
    callback(true);
  };
  impl_->Submit(
      std::move(operation),
      [impl = impl_.get(), path, watch](zhandle_t* client, Impl::Completion* completion) {
        return zoo_awexists(client, impl->FullPath(path).c_str(),
                            watch == 0 ? nullptr : &Impl::OnWatch, WatchContext(watch),
                            &Impl::OnStat, completion);
      },
      Impl::Refusal(path, 0));
}

void Session::Children(const std::string& path, ChildrenCallback callback, WatchId watch) {
  Operation operation;
  operation.what = "list " + path;
  operation.finish = [callback = std::move(callback)](Answer& answer, const Error* error) {
    if (error != nullptr) return callback(*error);
    std::sort(answer.names.begin(), answer.names.end());
    callback(std::move(answer.names));
  };
  impl_->Submit(
      std::move(operation),
      [impl = impl_.get(), path, watch](zhandle_t* client, Impl::Completion* completion) {
        return zoo_awget_children(client, impl->FullPath(path).c_str(),
                                  watch == 0 ? nullptr : &Impl::OnWatch, WatchContext(watch),
                                  &Impl::OnStrings, completion);
      },
      Impl::Refusal(path, 0));
}

void Session::Create(const std::string& path, std::string data, CreateMode mode,
                     CreateCallback callback) {
  // The chroot would make some of them look valid.
  const std::string full_path = ValidPath(path) ? impl_->FullPath(path) : "";
  impl_->CreateFull(full_path, std::move(data), mode, std::move(callback));
}

void Session::Set(const std::string& path, std::string data, std::int32_t version,
                  SetCallback callback) {
  Operation operation;
  operation.write = true;
  operation.what = "set " + path;
  operation.finish = [callback = std::move(callback)](Answer& answer, const Error* error) {
    if (error != nullptr) return callback(*error);
    callback(answer.stat.version);
  };
  const int refusal = Impl::Refusal(path, data.size());
  impl_->Submit(
      std::move(operation),
      [impl = impl_.get(), path, data = std::move(data), version](zhandle_t* client,
                                                                  Impl::Completion* completion) {
        return zoo_aset(client, impl->FullPath(path).c_str(), data.data(),
                        static_cast<int>(data.size()), version, &Impl::OnStat, completion);
      },
      refusal);
}

void Session::Delete(const std::string& path, std::int32_t version, StatusCallback callback) {
  Operation operation;
  operation.write = true;
  operation.what = "delete " + path;
  operation.finish = [callback = std::move(callback)](Answer&, const Error* error) {
    callback(error == nullptr ? Ok() : Status(*error));
  };
  impl_->Submit(
      std::move(operation),
      [impl = impl_.get(), path, version](zhandle_t* client, Impl::Completion* completion) {
        return zoo_adelete(client, impl->FullPath(path).c_str(), version, &Impl::OnVoid,
                           completion);
      },
      Impl::Refusal(path, 0));
}

void Session::Multi(std::vector<Op> ops, MultiCallback callback) {
  Operation operation;
  operation.write = true;
  operation.what = "transaction";
  int refusal = ops.empty() ? ZBADARGUMENTS : ZOK;
  std::size_t bytes = 0;
  for (const Op& op : ops) {
    bytes += op.path.size() + op.data.size() + 64;
    if (refusal == ZOK) refusal = Impl::Refusal(op.path, bytes);
  }
  const auto shared = std::make_shared<const std::vector<Op>>(std::move(ops));
  operation.finish = [shared, callback = std::move(callback)](Answer& answer, const Error* error) {
    MultiOutcome outcome;
    if (error == nullptr) {
      outcome.versions = std::move(answer.versions);
      return callback(std::move(outcome));
    }
    outcome.status = *error;
    if (const auto failed = FirstFailed(answer.results); failed && IsAnswer(answer.rc)) {
      outcome.failed_op = failed;
      const Op& op = (*shared)[*failed];
      outcome.status = Annotate(*error, std::string(KindName(op.kind)) + " " + op.path + ": ");
    }
    callback(std::move(outcome));
  };
  impl_->Submit(
      std::move(operation),
      [impl = impl_.get(), shared](zhandle_t* client, Impl::Completion* completion) {
        const std::size_t count = shared->size();
        auto call = std::make_unique<MultiCall>();
        call->ops.resize(count);
        call->results.resize(count);
        call->stats.resize(count);
        call->paths.resize(count);
        std::vector<std::string> full_paths;
        full_paths.reserve(count);
        for (std::size_t i = 0; i < count; ++i) {
          const Op& op = (*shared)[i];
          const std::string& path = full_paths.emplace_back(impl->FullPath(op.path));
          zoo_op_t* const out = &call->ops[i];
          switch (op.kind) {
            case Op::Kind::kCheck: zoo_check_op_init(out, path.c_str(), op.version); break;
            case Op::Kind::kCreate:
              call->paths[i].resize(path.size() + 16);
              zoo_create_op_init(out, path.c_str(), op.data.data(),
                                 static_cast<int>(op.data.size()), impl->Acl(), ClientMode(op.mode),
                                 call->paths[i].data(), static_cast<int>(call->paths[i].size()));
              break;
            case Op::Kind::kSet:
              zoo_set_op_init(out, path.c_str(), op.data.data(), static_cast<int>(op.data.size()),
                              op.version, &call->stats[i]);
              break;
            case Op::Kind::kDelete: zoo_delete_op_init(out, path.c_str(), op.version); break;
          }
        }
        completion->multi = std::move(call);
        return zoo_amulti(client, static_cast<int>(count), completion->multi->ops.data(),
                          completion->multi->results.data(), &Impl::OnVoid, completion);
      },
      refusal);
}

void Session::EnsurePath(const std::string& path, StatusCallback callback) {
  const auto impl = impl_;
  if (!ValidPath(path)) {
    boost::asio::post(impl->io, [path, callback = std::move(callback)] {
      callback(Error{ErrorCode::kInvalid, "ZooKeeper: '" + path + "' is not a valid path"});
    });
    return;
  }
  Exists(path, [impl, path, callback = std::move(callback)](Result<bool> exists) mutable {
    if (!exists.ok()) return callback(exists.error());
    if (*exists) return callback(Ok());
    const std::string full = impl->FullPath(path);
    std::vector<std::string> paths;
    for (std::size_t end = full.find('/', 1); end != std::string::npos;
         end = full.find('/', end + 1)) {
      paths.push_back(full.substr(0, end));
    }
    paths.push_back(full);
    impl->EnsureNext(std::move(paths), 0, std::move(callback));
  });
}

Session::WatchId Session::AddWatch(WatchCallback callback) {
  const WatchId id = ++impl_->last_id;
  impl_->watches.emplace(id, std::move(callback));
  return id;
}
void Session::RemoveWatch(WatchId id) { impl_->watches.erase(id); }

std::string ParentOf(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos || slash == 0 ? "/" : path.substr(0, slash);
}

std::string NameOf(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  return slash == std::string::npos ? path : path.substr(slash + 1);
}

std::string Join(const std::string& directory, const std::string& name) {
  return directory == "/" ? "/" + name : directory + "/" + name;
}

}  // namespace ps::zk
