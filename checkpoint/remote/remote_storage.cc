#include "checkpoint/remote/remote_storage.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <utility>

#include "checkpoint/remote/file_service.h"
#include "common/error_id.h"
#include "common/messages/control.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"

namespace ps::checkpoint {

namespace fs = std::filesystem;

namespace {

// A frame with what one answer may say beside its piece: names of a thousand servers.
constexpr std::int64_t kMaxFrameBytes = std::int64_t{16} << 20;

std::span<const std::byte> BytesOf(const zmq::message_t& frame) {
  return {static_cast<const std::byte*>(frame.data()), frame.size()};
}

}  // namespace

class RemoteStorage::Connection {
 public:
  Connection(net::Context& context, std::string endpoint, RemoteOptions options)
      : context_(context), endpoint_(std::move(endpoint)), options_(options) {}

  struct Answer {
    control::MessageT message;
    zmq::message_t piece;
  };

  // Sends what is asked, which gets a number, and returns that.
  template <typename Ask>
  Result<std::uint64_t> Send(Ask ask) {
    PS_TRY(Connect());
    ask.request = ++last_request_;
    net::ZmqSocket::Frames frames;
    frames.push_back(net::TakeFrame(control::Encode(control::Make(std::move(ask)))));
    const Status sent = socket_->Send(std::move(frames));
    if (!sent.ok()) return Lost(sent.error().message);
    wanted_.emplace(last_request_, std::nullopt);
    return last_request_;
  }

  Result<Answer> Wait(std::uint64_t request) {
    const auto answered = [&] {
      const auto at = wanted_.find(request);
      return broken_ || at == wanted_.end() || at->second.has_value();
    };
    const bool came = loop_.RunUntil(answered, options_.deadline);
    const auto at = wanted_.find(request);
    if (at == wanted_.end() || !at->second.has_value()) {
      return Lost(came ? "the connection is lost"
                       : "no answer within " + std::to_string(options_.deadline.count()) + " ms");
    }
    Answer answer = std::move(*at->second);
    wanted_.erase(at);
    return answer;
  }

  void Forget(std::uint64_t request) { wanted_.erase(request); }

  std::mutex mutex;  // of whoever calls

  // Of a file that is read from one end to the other the next piece is asked for before anybody
  // wants it.
  struct Ahead {
    fs::path file;
    std::uint64_t offset = 0;   // behind what was read last
    std::uint32_t bytes = 0;    // asked for
    std::uint64_t request = 0;  // 0: none is under way
  };
  Ahead ahead;

 private:
  Status Connect() {
    if (broken_) Close();
    if (socket_ != nullptr) return Ok();
    net::ZmqOptions options;
    options.max_frame_bytes = kMaxFrameBytes;
    options.frames_max = 2;
    options.name = "the file service " + endpoint_;
    options.peers = {net::Role::kServer, net::Role::kOperator};  // who brings a backup
    socket_ = PS_TRY(net::ZmqSocket::Open(loop_, context_, net::ZmqKind::kDealer, options));
    socket_->OnReceive([this](net::ZmqSocket::Frames&& frames) { OnFrames(std::move(frames)); });
    PS_TRY(socket_->OnConnection([this](bool connected) {
      if (!connected && connected_) broken_ = true;
      connected_ = connected;
    }));
    PS_TRY(socket_->Connect(endpoint_));
    if (!loop_.RunUntil([&] { return connected_; }, options_.connect_deadline)) {
      return Lost("cannot connect within " + std::to_string(options_.connect_deadline.count()) +
                  " ms");
    }
    return Ok();
  }

  Error Lost(const std::string& why) {
    Close();
    return Error{ErrorId::kFileServer, "the file service " + endpoint_ + ": " + why};
  }

  void Close() {
    socket_.reset();
    wanted_.clear();
    ahead = {};
    connected_ = false;
    broken_ = false;
  }

  void OnFrames(net::ZmqSocket::Frames&& frames) {
    if (frames.empty()) return;
    Result<control::MessageT> message = control::Decode(BytesOf(frames[0]));
    if (!message.ok()) return;
    std::uint64_t request = 0;
    if (const auto* data = message->body.AsFileData()) request = data->request;
    if (const auto* names = message->body.AsDirectoryNames()) request = names->request;
    const auto at = wanted_.find(request);
    if (at == wanted_.end()) return;  // of a wait that was given up
    at->second.emplace();
    at->second->message = std::move(*message);
    if (frames.size() > 1) at->second->piece = std::move(frames[1]);
  }

  net::Context& context_;
  const std::string endpoint_;
  const RemoteOptions options_;
  net::Loop loop_;
  std::unique_ptr<net::ZmqSocket> socket_;
  bool connected_ = false;
  bool broken_ = false;
  std::uint64_t last_request_ = 0;
  std::map<std::uint64_t, std::optional<Answer>> wanted_;  // by request
};

RemoteStorage::RemoteStorage(net::Context& context, std::string endpoint, RemoteOptions options)
    : endpoint_(std::move(endpoint)),
      connection_(std::make_unique<Connection>(context, endpoint_, options)) {}

RemoteStorage::~RemoteStorage() = default;

std::string RemoteStorage::Describe(const fs::path& path) const {
  return endpoint_ + ": " + path.string();
}

namespace {

// What an answer says of its failure.
template <typename AnswerT>
Status StatusOf(const AnswerT& answer, const std::string& endpoint) {
  if (answer.missing) return Error{ErrorCode::kNotFound, endpoint + ": " + answer.error};
  if (!answer.error.empty()) return Error{ErrorCode::kIo, endpoint + ": " + answer.error};
  return Ok();
}

Error Nonsense(const std::string& endpoint) {
  return Error{ErrorId::kFileServer,
               "the file service " + endpoint + ": its answer is not what was asked for"};
}

control::FileReadT ReadOf(const fs::path& file, std::uint64_t offset, std::uint32_t bytes) {
  control::FileReadT read;
  read.path = file.string();
  read.offset = offset;
  read.bytes = bytes;
  return read;
}

}  // namespace

Result<std::vector<std::string>> RemoteStorage::ListDirectories(const fs::path& directory) const {
  const std::lock_guard lock(connection_->mutex);
  control::DirectoryListT list;
  list.path = directory.string();
  const std::uint64_t request = PS_TRY(connection_->Send(std::move(list)));
  const Connection::Answer answer = PS_TRY(connection_->Wait(request));
  const auto* const found = answer.message.body.AsDirectoryNames();
  if (found == nullptr) return Nonsense(endpoint_);
  PS_TRY(StatusOf(*found, endpoint_));
  std::vector<std::string> names;
  for (const auto& name : found->names) {
    // One name each, that leads nowhere else.
    const fs::path path(name->name);
    if (path.empty() || path.filename() != path || path == ".." || path == ".") {
      return Nonsense(endpoint_);
    }
    names.push_back(name->name);
  }
  return names;
}

Result<std::uint64_t> RemoteStorage::FileBytes(const fs::path& file) const {
  const std::lock_guard lock(connection_->mutex);
  const std::uint64_t request = PS_TRY(connection_->Send(ReadOf(file, 0, 0)));
  const Connection::Answer answer = PS_TRY(connection_->Wait(request));
  const auto* const found = answer.message.body.AsFileData();
  if (found == nullptr) return Nonsense(endpoint_);
  PS_TRY(StatusOf(*found, endpoint_));
  return found->file_bytes;
}

Result<std::size_t> RemoteStorage::Read(const fs::path& file, std::uint64_t offset,
                                        std::span<std::byte> out) const {
  const std::lock_guard lock(connection_->mutex);
  std::size_t done = 0;
  while (done < out.size()) {
    const std::uint64_t at = offset + done;
    const auto wanted =
        static_cast<std::uint32_t>(std::min<std::size_t>(out.size() - done, kMaxPieceBytes));
    const Connection::Ahead ahead = std::exchange(connection_->ahead, {});
    const bool goes_on = ahead.file == file && ahead.offset == at;
    const bool asked = goes_on && ahead.request != 0 && ahead.bytes == wanted;
    // What was asked for and is not wanted any more is thrown away when it comes.
    if (ahead.request != 0 && !asked) connection_->Forget(ahead.request);
    const std::uint64_t request =
        asked ? ahead.request : PS_TRY(connection_->Send(ReadOf(file, at, wanted)));
    const std::uint64_t next =
        goes_on ? PS_TRY(connection_->Send(ReadOf(file, at + wanted, wanted))) : 0;
    const Connection::Answer answer = PS_TRY(connection_->Wait(request));
    connection_->ahead = {file, at + wanted, wanted, next};
    const auto* const found = answer.message.body.AsFileData();
    if (found == nullptr || answer.piece.size() > wanted) return Nonsense(endpoint_);
    PS_TRY(StatusOf(*found, endpoint_));
    std::memcpy(out.data() + done, answer.piece.data(), answer.piece.size());
    done += answer.piece.size();
    if (answer.piece.size() < wanted) break;
  }
  return done;
}

}  // namespace ps::checkpoint
