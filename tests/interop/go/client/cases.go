package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	pb "interop/gen"
)

// A testCase is one thing to see.
type testCase struct {
	name string
	run  func(*caseRun)
	when func(target) bool // for which it is; nil for all
}

func (c testCase) suits(on target) bool {
	return c.when == nil || c.when(on)
}

// What is the same in both codecs is looked at in one.
func inProto(on target) bool      { return on.codec == "proto" }
func inFullDuplex(on target) bool { return on.http2 && on.codec == "proto" }
func overHTTP1(on target) bool    { return !on.http2 && on.protocol == "connect" && on.codec == "proto" }
func inConnect(on target) bool    { return on.protocol == "connect" }

var cases = []testCase{
	{"values of every type", valuesOfEveryType, nil},
	{"all kinds, one connection", allKinds, nil},
	{"full duplex", fullDuplex, inFullDuplex},
	{"full duplex, much in both ways", muchInBothWays, inFullDuplex},
	{"answers that overtake their requests", earlyAnswers, inProto},
	{"gzip", gzip, nil},
	{"nothing compressed", nothingCompressed, inProto},
	{"GET", byGET, inConnect},
	{"errors of every code", errorsOfEveryCode, nil},
	{"an error with details, headers and trailers", richError, nil},
	{"errors of streams", errorsOfStreams, nil},
	{"headers and trailers", headersAndTrailers, nil},
	{"deadlines", deadlines, inProto},
	{"left in the middle, and the next call", leftInTheMiddle, inProto},
	{"large and too large", large, inProto},
	{"empty", empty, nil},
	{"what is not there", notThere, nil},
	{"gRPC where it cannot be served", notServed, overHTTP1},
	{"mounted, and strict about the protocol's version", mounted, inProto},
	{"200 at once", manyAtOnce, inProto},
}

func valuesOfEveryType(r *caseRun) {
	packed, err := anypb.New(ping("hello"))
	ok(err)
	structure, err := structpb.NewStruct(map[string]any{
		"a": nil, "b": []any{1.0, "x", true}, "c": map[string]any{"d": map[string]any{}},
	})
	ok(err)
	request := &pb.EchoRequest{
		Text:     "\u00e4\U0001f600\x00",
		Data:     []byte{0, 255, 128},
		Number:   math.MinInt64,
		Ratio:    -1e-300,
		Mood:     pb.Mood_MOOD_GOOD,
		Child:    &pb.EchoRequest{Child: &pb.EchoRequest{Text: "deep"}},
		Counts:   map[string]int32{"a": 1, "": -5},
		Any:      packed,
		When:     timestamppb.Now(),
		Duration: &durationpb.Duration{Seconds: -3, Nanos: -5},
		Struct:   structure,
	}
	response, err := r.client().echo(r.ctx, request)
	ok(err)
	check(proto.Equal(response.GetRequest(), request), "not the same: %v", response.GetRequest())
	contentType := map[string]string{
		"connect": "application/", "grpc": "application/grpc+", "grpc-web": "application/grpc-web+",
	}[r.protocol] + r.codec
	// connect-go leaves gRPC's usual codec out.
	found := strings.TrimSuffix(strings.Join(seen(response, "content-type"), ", "), "+proto")
	check(found == strings.TrimSuffix(contentType, "+proto"), "the server has seen %q", found)
	agent := strings.Join(append(seen(response, "user-agent"), seen(response, "x-user-agent")...), " ")
	product := map[bool]string{true: "connect-go/", false: "grpc-go-connect/"}[r.protocol == "connect"]
	check(strings.Contains(agent, product), "the server has seen %q", agent)
}

func allKinds(r *caseRun) {
	client := r.client()
	for range rounds {
		client.allKinds(r.ctx)
		_, err := client.echo(r.ctx, &pb.EchoRequest{Misdeed: "error=ABORTED"})
		failed(err, connect.CodeAborted)
	}
	check(client.dialed.Load() == 1, "%d connections", client.dialed.Load())
}

// fullDuplex waits for each answer before the next message goes out, in several streams of one connection.
func fullDuplex(r *caseRun) {
	client := r.client()
	client.allKinds(r.ctx)
	parallel(20, func(index int) {
		stream := client.probe.Chat(r.ctx)
		for round := range 20 {
			text := fmt.Sprint(index, round)
			ok(stream.Send(&pb.ChatRequest{Text: text}))
			message, err := stream.Receive()
			ok(err)
			check(message.GetText() == text, "%q instead of %q", message.GetText(), text)
		}
		ok(stream.CloseRequest())
		_, err := stream.Receive()
		check(errors.Is(err, io.EOF), "the stream has not ended: %v", err)
		ok(stream.CloseResponse())
	})
	// The handler speaks first, and ends the stream while the client could go on.
	stream := client.probe.Chat(r.ctx)
	stream.RequestHeader().Set("X-Misdeed", "greet")
	ok(stream.Send(nil))
	message, err := stream.Receive()
	ok(err)
	check(message.GetText() == "hello", "%q", message.GetText())
	ok(stream.Send(&pb.ChatRequest{Misdeed: "enough"}))
	_, err = stream.Receive()
	check(errors.Is(err, io.EOF), "the stream has not ended: %v", err)
	ok(stream.CloseRequest())
	ok(stream.CloseResponse())
	check(client.dialed.Load() == 1, "%d connections", client.dialed.Load())
}

// muchInBothWays sends as fast as it can while it receives.
func muchInBothWays(r *caseRun) {
	client := r.client()
	texts := make([]string, 50)
	for index := range texts {
		texts[index] = strings.Repeat(string(rune('a'+index%26)), 1<<16)
	}
	stream := client.probe.Chat(r.ctx)
	sent := make(chan error, 1)
	go func() {
		for _, text := range texts {
			if err := stream.Send(&pb.ChatRequest{Text: text}); err != nil {
				sent <- err
				return
			}
		}
		sent <- stream.CloseRequest()
	}()
	for index, text := range texts {
		message, err := stream.Receive()
		ok(err)
		check(message.GetText() == text, "answer %d is not its request", index)
	}
	ok(<-sent)
	_, err := stream.Receive()
	check(errors.Is(err, io.EOF), "the stream has not ended: %v", err)
	ok(stream.CloseResponse())
}

// earlyAnswers goes on sending when the handler has had enough.
func earlyAnswers(r *caseRun) {
	client := r.client()
	more := make([]*pb.SumRequest, 16)
	for index := range more {
		more[index] = &pb.SumRequest{Number: 1, Padding: make([]byte, 1<<16)}
	}
	for range 3 {
		enough := append([]*pb.SumRequest{{Number: 1}, {Number: 2, Misdeed: "enough"}}, more...)
		sum, err := client.sum(r.ctx, enough...)
		ok(err)
		check(sum.GetSum() == 3 && sum.GetMessages() == 2, "added up to %v", sum)
		refused := append([]*pb.SumRequest{{Number: 1}, {Misdeed: "error"}}, more...)
		_, err = client.sum(r.ctx, refused...)
		coded := failed(err, connect.CodeNotFound)
		check(coded.Message() == "enough", "%q", coded.Message())
	}
	client.allKinds(r.ctx)
}

// encodings are the headers that name a message's compression: that of a unary call, and that of a stream.
func encodings(protocol string) (unary, stream string) {
	if protocol == "connect" {
		return "Content-Encoding", "Connect-Content-Encoding"
	}
	return "Grpc-Encoding", "Grpc-Encoding"
}

func gzip(r *caseRun) {
	client := r.client(connect.WithSendGzip())
	client.allKinds(r.ctx)
	unary, stream := encodings(r.protocol)
	response, err := client.echo(r.ctx, &pb.EchoRequest{Text: strings.Repeat("x", 5000)})
	ok(err)
	sent := seen(response, unary)
	check(len(sent) == 1 && sent[0] == "gzip", "the server has seen %q", sent)
	check(client.lastAnswer(unary) == "gzip", "%q", client.lastAnswer(unary))
	_, err = client.count(r.ctx, &pb.CountRequest{UpTo: 3, Padding: padding})
	ok(err)
	check(client.lastAnswer(stream) == "gzip", "%q", client.lastAnswer(stream))
	_, err = client.echo(r.ctx, &pb.EchoRequest{Misdeed: "big error"})
	coded := failed(err, connect.CodeAborted)
	check(coded.Message() == strings.Repeat("x", 5000), "%q", coded.Message())
}

func nothingCompressed(r *caseRun) {
	client := r.client(connect.WithAcceptCompression("gzip", nil, nil))
	client.allKinds(r.ctx)
	_, err := client.echo(r.ctx, &pb.EchoRequest{Text: strings.Repeat("x", 5000)})
	ok(err)
	unary, _ := encodings(r.protocol)
	check(client.lastAnswer(unary) == "" || client.lastAnswer(unary) == "identity", "%q", client.lastAnswer(unary))
}

func byGET(r *caseRun) {
	client := r.client(connect.WithHTTPGet())
	request := &pb.EchoRequest{Text: "\u00e4 +/?&%=#", Data: []byte{251, 255}, Number: -1}
	response, err := client.probe.Look(r.ctx, connect.NewRequest(request))
	ok(err)
	check(proto.Equal(response.Msg.GetRequest(), request), "not the same: %v", response.Msg.GetRequest())
	check(seen(response.Msg, "content-type") == nil, "it was no GET")
	long := &pb.EchoRequest{Text: strings.Repeat("long ", 1000)}
	compressing := r.client(connect.WithHTTPGet(), connect.WithSendGzip(), connect.WithHTTPGetMaxURLSize(1000, true))
	response, err = compressing.probe.Look(r.ctx, connect.NewRequest(long))
	ok(err)
	check(proto.Equal(response.Msg.GetRequest(), long), "not the same: %v", response.Msg.GetRequest())
	response, err = client.probe.Look(r.ctx, connect.NewRequest(&pb.EchoRequest{Misdeed: "metadata"}))
	ok(err)
	check(strings.Join(response.Trailer().Values("X-Tail"), ", ") == "3, 4", "trailers: %v", response.Trailer())
	_, err = client.probe.Look(r.ctx, connect.NewRequest(&pb.EchoRequest{Misdeed: "error=ABORTED"}))
	failed(err, connect.CodeAborted)
	_, err = client.echo(r.ctx, &pb.EchoRequest{})
	ok(err)
	check(fmt.Sprint(client.methods) == "[GET GET GET POST]", "%v", client.methods)
	check(fmt.Sprint(compressing.methods) == "[GET]", "%v", compressing.methods)
}

func errorsOfEveryCode(r *caseRun) {
	client := r.client()
	for code := connect.CodeCanceled; code <= connect.CodeUnauthenticated; code++ {
		name := strings.ToUpper(code.String())
		_, err := client.echo(r.ctx, &pb.EchoRequest{Misdeed: "error=" + name})
		coded := failed(err, code)
		check(coded.Message() == "this is "+name, "%q", coded.Message())
		check(connect.IsWireError(err), "it does not come from the server: %v", err)
	}
}

func richError(r *caseRun) {
	client := r.client()
	_, err := client.echo(r.ctx, &pb.EchoRequest{Misdeed: "error with metadata"})
	coded := failed(err, connect.CodeAborted)
	check(coded.Message() == "no", "%q", coded.Message())
	check(fmt.Sprint(details(coded)) == "[detail]", "%q", details(coded))
	check(coded.Meta().Get("X-Head") == "1" && coded.Meta().Get("X-Tail") == "2", "%v", coded.Meta())
	// What cannot be sent as it is.
	_, err = client.echo(r.ctx, &pb.EchoRequest{Misdeed: "odd error"})
	message := failed(err, connect.CodeAborted).Message()
	check(strings.HasPrefix(message, "a\r\nb\x00c") && strings.HasSuffix(message, "\"d\u2028"), "%q", message)
}

func errorsOfStreams(r *caseRun) {
	client := r.client()
	numbers, err := client.count(r.ctx, &pb.CountRequest{UpTo: 3, Misdeed: "error last"})
	coded := failed(err, connect.CodeNotFound)
	check(fmt.Sprint(numbers) == "[1 2 3]", "%v", numbers)
	check(coded.Message() == "enough" && fmt.Sprint(details(coded)) == "[detail]", "%v", coded)
	numbers, err = client.count(r.ctx, &pb.CountRequest{Misdeed: "error at once"})
	failed(err, connect.CodeNotFound)
	check(numbers == nil, "%v", numbers)
	_, err = client.sum(r.ctx, &pb.SumRequest{Number: 1}, &pb.SumRequest{Misdeed: "error"}, &pb.SumRequest{})
	failed(err, connect.CodeNotFound)
	if r.http2 {
		messages := []*pb.ChatRequest{{Text: "a"}, {Misdeed: "error"}, {Text: "b"}}
		texts, err := client.chat(r.ctx, messages...)
		failed(err, connect.CodeNotFound)
		check(fmt.Sprint(texts) == "[a]", "%q", texts)
	}
	// What a handler did not mean to tell stays with the server.
	_, err = client.echo(r.ctx, &pb.EchoRequest{Misdeed: "raise=ValueError"})
	coded = failed(err, connect.CodeUnknown)
	check(!strings.Contains(coded.Message(), "secret"), "%q", coded.Message())
}

func headersAndTrailers(r *caseRun) {
	binary := []byte{0, 1, 254, 255}
	see := func(headers, trailers http.Header) {
		check(fmt.Sprint(headers.Values("X-Head")) == "[1 2]", "headers: %v", headers)
		check(fmt.Sprint(trailers.Values("X-Tail")) == "[3 4]", "trailers: %v", trailers)
		for _, metadata := range []http.Header{headers, trailers} {
			values := metadata.Values("X-Mirror-Bin")
			check(len(values) == 1, "%v", metadata)
			value, err := connect.DecodeBinaryHeader(values[0])
			ok(err)
			check(bytes.Equal(value, binary), "%v", value)
		}
	}
	client := r.clientAt("/mirror")

	request := connect.NewRequest(&pb.EchoRequest{Misdeed: "metadata"})
	request.Header().Set("X-Mirror-Bin", connect.EncodeBinaryHeader(binary))
	request.Header().Add("X-Text", "a, b")
	request.Header().Add("X-Text", "c")
	response, err := client.probe.Echo(r.ctx, request)
	ok(err)
	see(response.Header(), response.Trailer())
	// Servers may join values of one name, WSGI even has to, with and without a space.
	texts := strings.ReplaceAll(strings.Join(seen(response.Msg, "x-text"), ","), ", ", ",")
	check(texts == "a,b,c", "%q", texts)
	value, err := connect.DecodeBinaryHeader(strings.Join(seen(response.Msg, "x-mirror-bin"), ", "))
	ok(err)
	check(bytes.Equal(value, binary), "%v", value)

	counting := connect.NewRequest(&pb.CountRequest{UpTo: 1, Misdeed: "metadata"})
	counting.Header().Set("X-Mirror-Bin", connect.EncodeBinaryHeader(binary))
	stream, err := client.probe.Count(r.ctx, counting)
	ok(err)
	check(stream.Receive() && !stream.Receive(), "not one message")
	ok(stream.Err())
	see(stream.ResponseHeader(), stream.ResponseTrailer())
	ok(stream.Close())
}

func deadlines(r *caseRun) {
	client := r.client()
	client.notes(r.ctx, "", 0)
	within := func(limit time.Duration, call func(context.Context) error) error {
		ctx, cancel := context.WithTimeout(r.ctx, limit)
		defer cancel()
		return call(ctx)
	}
	ok(within(10*time.Second, func(ctx context.Context) error {
		response, err := client.echo(ctx, &pb.EchoRequest{})
		ok(err)
		check(response.GetTimeoutMs() > 1000 && response.GetTimeoutMs() <= 10_000, "%v ms", response.GetTimeoutMs())
		return nil
	}))
	name := "late " + r.String()
	failed(within(200*time.Millisecond, func(ctx context.Context) error {
		_, err := client.echo(ctx, &pb.EchoRequest{Text: name, DelayMs: 1500})
		return err
	}), connect.CodeDeadlineExceeded)
	if r.async {
		client.notes(r.ctx, name+": cancelled", 1)
	}
	failed(within(300*time.Millisecond, func(ctx context.Context) error {
		numbers, err := client.count(ctx, &pb.CountRequest{UpTo: 1000, DelayMs: 20, Name: name})
		check(len(numbers) < 20, "%d messages", len(numbers))
		return err
	}), connect.CodeDeadlineExceeded)
	client.notes(r.ctx, name+": end", 1)
	// The server's own, of which the client knows nothing.
	hasty := r.clientAt("/hasty")
	_, err := hasty.echo(r.ctx, &pb.EchoRequest{DelayMs: 400})
	check(connect.IsWireError(failed(err, connect.CodeDeadlineExceeded)), "it does not come from the server: %v", err)
	numbers, err := hasty.count(r.ctx, &pb.CountRequest{UpTo: 1000, DelayMs: 20})
	check(connect.IsWireError(failed(err, connect.CodeDeadlineExceeded)), "it does not come from the server: %v", err)
	check(len(numbers) < 12, "%d messages", len(numbers))
	client.allKinds(r.ctx)
	if r.http2 {
		check(client.dialed.Load() == 1, "%d connections", client.dialed.Load())
	}
}

func leftInTheMiddle(r *caseRun) {
	client := r.client()
	client.notes(r.ctx, "", 0)
	name := "left " + r.String()
	cancelable := func(call func(context.Context, context.CancelFunc)) {
		ctx, cancel := context.WithCancel(r.ctx)
		defer cancel()
		call(ctx, cancel)
		client.allKinds(r.ctx)
	}
	// Once by cancelling, once by closing.
	cancelable(func(ctx context.Context, cancel context.CancelFunc) {
		stream, err := client.probe.Count(ctx, connect.NewRequest(&pb.CountRequest{UpTo: 1000, DelayMs: 10, Name: name}))
		ok(err)
		for number := range 3 {
			check(stream.Receive() && stream.Msg().GetNumber() == int32(number+1), "%v: %v", stream.Msg(), stream.Err())
		}
		cancel()
		for stream.Receive() {
		}
		failed(stream.Err(), connect.CodeCanceled)
		stream.Close()
	})
	cancelable(func(ctx context.Context, cancel context.CancelFunc) {
		if !r.http2 {
			return
		}
		stream := client.probe.Chat(ctx)
		stream.RequestHeader().Set("X-Name", name)
		ok(stream.Send(&pb.ChatRequest{Text: "a"}))
		message, err := stream.Receive()
		ok(err)
		check(message.GetText() == "a", "%q", message.GetText())
		cancel()
		_, err = stream.Receive()
		failed(err, connect.CodeCanceled)
		stream.CloseRequest()
		stream.CloseResponse()
	})
	cancelable(func(ctx context.Context, cancel context.CancelFunc) {
		stream := client.probe.Sum(ctx)
		stream.RequestHeader().Set("X-Name", name)
		ok(stream.Send(&pb.SumRequest{Number: 1}))
		time.AfterFunc(100*time.Millisecond, cancel)
		var err error
		for err == nil {
			time.Sleep(5 * time.Millisecond)
			err = stream.Send(&pb.SumRequest{Number: 1})
		}
		_, err = stream.CloseAndReceive()
		failed(err, connect.CodeCanceled)
	})
	if !r.unaware {
		client.notes(r.ctx, name+": end", map[bool]int{true: 3, false: 2}[r.http2])
	}
	cancelable(func(ctx context.Context, cancel context.CancelFunc) {
		time.AfterFunc(100*time.Millisecond, cancel)
		_, err := client.echo(ctx, &pb.EchoRequest{Text: name, DelayMs: 1500})
		failed(err, connect.CodeCanceled)
		if r.async {
			client.notes(r.ctx, name+": cancelled", 1)
		}
	})
	if r.http2 {
		check(client.dialed.Load() == 1, "%d connections", client.dialed.Load())
	}
}

func large(r *caseRun) {
	client := r.client()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	response, err := client.echo(r.ctx, &pb.EchoRequest{Data: data})
	ok(err)
	check(bytes.Equal(response.GetRequest().GetData(), data), "%d bytes", len(response.GetRequest().GetData()))
	numbers, err := client.count(r.ctx, &pb.CountRequest{UpTo: 3, Padding: 1 << 20})
	ok(err)
	check(len(numbers) == 3, "%d messages", len(numbers))
	var requests []*pb.SumRequest
	for range 3 {
		requests = append(requests, &pb.SumRequest{Number: 1, Padding: data})
	}
	sum, err := client.sum(r.ctx, requests...)
	ok(err)
	check(sum.GetSum() == 3, "added up to %v", sum)

	_, err = client.echo(r.ctx, &pb.EchoRequest{Data: make([]byte, 6_000_000)})
	failed(err, connect.CodeResourceExhausted)
	_, err = client.sum(r.ctx, &pb.SumRequest{Number: 1}, &pb.SumRequest{Padding: make([]byte, 6_000_000)})
	failed(err, connect.CodeResourceExhausted)
	_, err = r.client(connect.WithReadMaxBytes(1000)).echo(r.ctx, &pb.EchoRequest{Text: strings.Repeat("x", 2000)})
	failed(err, connect.CodeResourceExhausted)
	client.allKinds(r.ctx)
}

func empty(r *caseRun) {
	client := r.client()
	sum, err := client.sum(r.ctx)
	ok(err)
	check(sum.GetMessages() == 0, "%v", sum)
	if r.http2 {
		texts, err := client.chat(r.ctx)
		ok(err)
		check(texts == nil, "%q", texts)
	}
	numbers, err := client.count(r.ctx, &pb.CountRequest{})
	ok(err)
	check(numbers == nil, "%v", numbers)
	response, err := client.other.Ping(r.ctx, connect.NewRequest(&pb.PingRequest{}))
	ok(err)
	check(proto.Equal(response.Msg, &pb.PingResponse{}), "%v", response.Msg)
}

func notThere(r *caseRun) {
	client := r.client()
	_, err := client.probe.Missing(r.ctx, connect.NewRequest(&pb.EchoRequest{}))
	failed(err, connect.CodeUnimplemented)
	elsewhere := r.clientAt("/elsewhere")
	_, err = elsewhere.echo(r.ctx, &pb.EchoRequest{})
	failed(err, connect.CodeUnimplemented)
	_, err = elsewhere.count(r.ctx, &pb.CountRequest{})
	failed(err, connect.CodeUnimplemented)
	_, err = elsewhere.sum(r.ctx, &pb.SumRequest{}, &pb.SumRequest{})
	failed(err, connect.CodeUnimplemented)
	client.allKinds(r.ctx)
}

// notServed sees to it that gRPC fails in its own terms, which say why.
func notServed(r *caseRun) {
	client := r.client(connect.WithGRPC())
	_, err := client.echo(r.ctx, &pb.EchoRequest{})
	coded := failed(err, connect.CodeUnimplemented)
	check(connect.IsWireError(err), "it does not come from the server: %v", err)
	check(strings.Contains(coded.Message(), "trailers"), "%q", coded.Message())
	_, err = client.count(r.ctx, &pb.CountRequest{UpTo: 3})
	failed(err, connect.CodeUnimplemented)
	r.client().allKinds(r.ctx)
}

func mounted(r *caseRun) {
	for _, path := range []string{"/mounted", "/deep/er", "/strict", "/prefixed"} {
		r.clientAt(path, connect.WithHTTPGet()).allKinds(r.ctx)
	}
}

func manyAtOnce(r *caseRun) {
	client := r.client()
	client.allKinds(r.ctx)
	var lock sync.Mutex
	answered := map[int64]bool{}
	parallel(200, func(index int) {
		response, err := client.echo(r.ctx, &pb.EchoRequest{Number: int64(index), DelayMs: 20})
		ok(err)
		lock.Lock()
		defer lock.Unlock()
		answered[response.GetRequest().GetNumber()] = true
	})
	check(len(answered) == 200, "%d answers", len(answered))
	parallel(50, func(int) { client.allKinds(r.ctx) })
}
