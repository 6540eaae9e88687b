#include "checkpoint/remote/file_service.h"

#include <spdlog/spdlog.h>

#include <algorithm>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "checkpoint/storage.h"
#include "common/messages/control.h"
#include "common/net/loop.h"
#include "common/net/zmq_socket.h"

namespace ps::checkpoint {
namespace {

namespace fs = std::filesystem;

constexpr const char* kJobPrefix = "job-";
// A peer asks for a piece or two at a time.
constexpr int kSendHighWater = 16;

// Below the folder of a job, without a way out of it.
bool IsGiven(const std::string& text) {
  const fs::path path(text);
  if (text.empty() || text.find('\0') != std::string::npos || path.is_absolute()) return false;
  if (path.begin()->string().rfind(kJobPrefix, 0) != 0) return false;
  return std::none_of(path.begin(), path.end(),
                      [](const fs::path& one) { return one == ".." || one == "." || one.empty(); });
}

Error Refused(const std::string& path) {
  return Error{ErrorCode::kDenied, "`" + path + "` is no path of a checkpoint"};
}

}  // namespace

class FileService::Impl {
 public:
  explicit Impl(fs::path root) : storage_(std::move(root)) {}
  ~Impl() {
    loop_.Stop();
    if (thread_.joinable()) thread_.join();
  }

  Status Start(net::Context& context, const std::string& bind) {
    net::ZmqOptions options;
    options.send_high_water = kSendHighWater;
    options.max_frame_bytes = std::int64_t{64} << 10;  // of what is asked
    options.frames_max = 2;
    options.name = "a reader of checkpoints";
    options.admits = {net::Role::kServer, net::Role::kOperator};
    socket_ = PS_TRY(net::ZmqSocket::Open(loop_, context, net::ZmqKind::kRouter, options));
    socket_->OnReceive([this](net::ZmqSocket::Frames&& frames) { OnFrames(std::move(frames)); });
    endpoint_ = PS_TRY(socket_->Bind(bind));
    thread_ = std::thread([this] { loop_.Run(); });
    return Ok();
  }

  const std::string& endpoint() const { return endpoint_; }

 private:
  void OnFrames(net::ZmqSocket::Frames&& frames) {
    if (frames.size() != 2) return;
    const auto message = control::Decode(
        std::span(static_cast<const std::byte*>(frames[1].data()), frames[1].size()));
    if (!message.ok()) return spdlog::debug("file service: {}", message.error().message);
    net::ZmqSocket::Frames answer;
    answer.push_back(std::move(frames[0]));
    if (const auto* read = message->body.AsFileRead()) {
      AnswerRead(*read, answer);
    } else if (const auto* list = message->body.AsDirectoryList()) {
      AnswerList(*list, answer);
    } else {
      return spdlog::debug("file service: a {}, which is not for it", control::BodyName(*message));
    }
    // Who does not take its answers asks again.
    const Status sent = socket_->Send(std::move(answer));
    if (!sent.ok()) spdlog::debug("file service: {}", sent.error().message);
  }

  void AnswerRead(const control::FileReadT& read, net::ZmqSocket::Frames& answer) {
    control::FileDataT data;
    data.request = read.request;
    std::vector<std::byte> piece;
    const Status done = Read(read, data, piece);
    if (!done.ok()) {
      data.missing = done.error().code == ErrorCode::kNotFound;
      data.error = done.error().message;
      piece.clear();
    }
    answer.push_back(net::TakeFrame(control::Encode(control::Make(std::move(data)))));
    answer.push_back(net::TakeFrame(std::move(piece)));
  }

  Status Read(const control::FileReadT& read, control::FileDataT& data,
              std::vector<std::byte>& piece) const {
    if (!IsGiven(read.path)) return Refused(read.path);
    data.file_bytes = PS_TRY(storage_.FileBytes(read.path));
    const std::uint64_t left =
        read.offset < data.file_bytes ? data.file_bytes - read.offset : std::uint64_t{0};
    piece.resize(static_cast<std::size_t>(
        std::min({std::uint64_t{read.bytes}, std::uint64_t{kMaxPieceBytes}, left})));
    piece.resize(PS_TRY(storage_.Read(read.path, read.offset, piece)));
    return Ok();
  }

  void AnswerList(const control::DirectoryListT& list, net::ZmqSocket::Frames& answer) {
    control::DirectoryNamesT names;
    names.request = list.request;
    Result<std::vector<std::string>> found =
        IsGiven(list.path) ? storage_.ListDirectories(list.path) : Refused(list.path);
    if (found.ok()) {
      for (std::string& name : *found) {
        names.names.push_back(std::make_unique<control::PartNameT>());
        names.names.back()->name = std::move(name);
      }
    } else {
      names.missing = found.error().code == ErrorCode::kNotFound;
      names.error = found.error().message;
    }
    answer.push_back(net::TakeFrame(control::Encode(control::Make(std::move(names)))));
  }

  const LocalStorage storage_;
  net::Loop loop_;
  std::unique_ptr<net::ZmqSocket> socket_;
  std::string endpoint_;
  std::thread thread_;  // runs the loop
};

FileService::FileService(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
FileService::~FileService() = default;

Result<std::unique_ptr<FileService>> FileService::Start(net::Context& context, fs::path root,
                                                        const std::string& bind) {
  auto impl = std::make_unique<Impl>(std::move(root));
  PS_TRY(impl->Start(context, bind));
  return std::unique_ptr<FileService>(new FileService(std::move(impl)));
}

const std::string& FileService::endpoint() const { return impl_->endpoint(); }

}  // namespace ps::checkpoint
