package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"

	pb "interop/gen"
	"interop/gen/integrationv1connect"
)

const (
	// Enough for the compression of messages to begin.
	padding = 2000
	rounds  = 10
	// How many connections HTTP/1.1 may use.
	connectionsMax = 64
)

// A caseRun is a case that runs.
type caseRun struct {
	target
	ctx     context.Context
	clients []*client
}

func (r *caseRun) close() {
	for _, each := range r.clients {
		each.transport.CloseIdleConnections()
	}
}

// A client of connect-go's, and what can be seen of it from outside.
type client struct {
	probe     integrationv1connect.ProbeServiceClient
	other     integrationv1connect.OtherServiceClient
	transport *http.Transport
	dialed    atomic.Int64 // the connections that were made

	lock    sync.Mutex
	methods []string    // of the requests
	answer  http.Header // the head of the last answer, as it has come
}

// RoundTrip makes the client an http.RoundTripper.
func (c *client) RoundTrip(request *http.Request) (*http.Response, error) {
	response, err := c.transport.RoundTrip(request)
	c.lock.Lock()
	defer c.lock.Unlock()
	c.methods = append(c.methods, request.Method)
	if err == nil {
		c.answer = response.Header.Clone()
	}
	return response, err
}

// lastAnswer gives a header of the last answer.
func (c *client) lastAnswer(name string) string {
	c.lock.Lock()
	defer c.lock.Unlock()
	return c.answer.Get(name)
}

// client makes one that speaks as the case shall.
func (r *caseRun) client(options ...connect.ClientOption) *client {
	return r.clientAt("", options...)
}

func (r *caseRun) clientAt(path string, options ...connect.ClientOption) *client {
	made := &client{}
	made.transport = &http.Transport{
		Protocols: new(http.Protocols),
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			made.dialed.Add(1)
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}
	if r.http2 {
		made.transport.Protocols.SetUnencryptedHTTP2(true)
	} else {
		made.transport.Protocols.SetHTTP1(true)
		made.transport.MaxConnsPerHost = connectionsMax
		made.transport.MaxIdleConnsPerHost = connectionsMax
	}
	switch r.protocol {
	case "grpc":
		options = append(options, connect.WithGRPC())
	case "grpc-web":
		options = append(options, connect.WithGRPCWeb())
	}
	if r.codec == "json" {
		options = append(options, connect.WithProtoJSON())
	}
	httpClient := &http.Client{Transport: made}
	made.probe = integrationv1connect.NewProbeServiceClient(httpClient, r.url+path, options...)
	made.other = integrationv1connect.NewOtherServiceClient(httpClient, r.url+path, options...)
	r.clients = append(r.clients, made)
	return made
}

func ping(text string) *pb.PingRequest {
	return &pb.PingRequest{Text: text}
}

func (c *client) echo(ctx context.Context, request *pb.EchoRequest) (*pb.EchoResponse, error) {
	response, err := c.probe.Echo(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// count gives the numbers that have come, also before an error.
func (c *client) count(ctx context.Context, request *pb.CountRequest) ([]int32, error) {
	stream, err := c.probe.Count(ctx, connect.NewRequest(request))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	var numbers []int32
	for stream.Receive() {
		numbers = append(numbers, stream.Msg().GetNumber())
	}
	return numbers, stream.Err()
}

func (c *client) sum(ctx context.Context, requests ...*pb.SumRequest) (*pb.SumResponse, error) {
	stream := c.probe.Sum(ctx)
	for _, request := range requests {
		// io.EOF: the answer is there already.
		if err := stream.Send(request); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	response, err := stream.CloseAndReceive()
	if err != nil {
		return nil, err
	}
	return response.Msg, nil
}

// chat sends everything before it receives anything, and gives the texts that have come, also before an error.
func (c *client) chat(ctx context.Context, requests ...*pb.ChatRequest) ([]string, error) {
	stream := c.probe.Chat(ctx)
	defer stream.CloseResponse()
	for _, request := range requests {
		if err := stream.Send(request); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, err
		}
	}
	if err := stream.CloseRequest(); err != nil {
		return nil, err
	}
	var texts []string
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return texts, nil
		} else if err != nil {
			return texts, err
		}
		texts = append(texts, message.GetText())
	}
}

// notes gives what the server's handlers have noted, once so many end in the suffix.
func (c *client) notes(ctx context.Context, suffix string, wanted int) []string {
	var notes []string
	until := time.Now().Add(5 * time.Second)
	for {
		response, err := c.probe.Notes(ctx, connect.NewRequest(&pb.NotesRequest{}))
		ok(err)
		notes = append(notes, response.Msg.GetNotes()...)
		found := 0
		for _, note := range notes {
			if strings.HasSuffix(note, suffix) {
				found++
			}
		}
		if found >= wanted {
			return notes
		}
		check(time.Now().Before(until), "the handlers have noted %q, without %d of %q", notes, wanted, suffix)
		time.Sleep(20 * time.Millisecond)
	}
}

// allKinds makes a call of each kind, and looks at each answer. Over HTTP/1.1 connect-go has no streams in both ways.
func (c *client) allKinds(ctx context.Context) {
	text := strings.Repeat("long enough to be compressed ", 100)
	echoed, err := c.echo(ctx, &pb.EchoRequest{Text: text})
	ok(err)
	check(echoed.GetRequest().GetText() == text, "not the text: %v", echoed)

	numbers, err := c.count(ctx, &pb.CountRequest{UpTo: 5, Padding: padding})
	ok(err)
	check(fmt.Sprint(numbers) == "[1 2 3 4 5]", "counted %v", numbers)

	var requests []*pb.SumRequest
	for number := range int64(4) {
		requests = append(requests, &pb.SumRequest{Number: number + 1, Padding: make([]byte, padding)})
	}
	sum, err := c.sum(ctx, requests...)
	ok(err)
	check(sum.GetSum() == 10 && sum.GetMessages() == 4, "added up to %v", sum)

	if c.transport.Protocols.HTTP1() {
		return
	}
	texts, err := c.chat(ctx, &pb.ChatRequest{Text: "a"}, &pb.ChatRequest{Text: text}, &pb.ChatRequest{})
	ok(err)
	check(len(texts) == 3 && texts[0] == "a" && texts[1] == text && texts[2] == "", "answered %q", texts)
}

// failed gives the error that a call has to have ended with.
func failed(err error, code connect.Code) *connect.Error {
	check(err != nil, "no error, but %v was expected", code)
	var coded *connect.Error
	check(errors.As(err, &coded), "not an error of connect-go's: %v", err)
	check(coded.Code() == code, "%v was expected, not: %v", code, err)
	return coded
}

// details gives the texts of an error's details.
func details(err *connect.Error) []string {
	var texts []string
	for _, detail := range err.Details() {
		value, err := detail.Value()
		ok(err)
		request, isPing := value.(*pb.PingRequest)
		check(isPing, "a detail is %v", detail.Type())
		texts = append(texts, request.GetText())
	}
	return texts
}

// seen gives the values of a header that the server has seen.
func seen(response *pb.EchoResponse, name string) []string {
	for _, header := range response.GetHeaders() {
		if strings.EqualFold(header.GetName(), name) {
			return header.GetValues()
		}
	}
	return nil
}
