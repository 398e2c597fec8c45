package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	pb "interop/gen"
	"interop/gen/integrationv1connect"
)

// A probe does as each request tells it, well or badly: what service.py does, as far as the cases need it. It lacks a
// method.
type probe struct {
	integrationv1connect.UnimplementedProbeServiceHandler

	lock  sync.Mutex
	notes []string
}

type other struct{}

func (other) Ping(_ context.Context, request *connect.Request[pb.PingRequest]) (*connect.Response[pb.PingResponse], error) {
	return connect.NewResponse(&pb.PingResponse{Text: request.Msg.GetText()}), nil
}

func (p *probe) note(format string, values ...any) {
	p.lock.Lock()
	defer p.lock.Unlock()
	p.notes = append(p.notes, fmt.Sprintf(format, values...))
}

// sleep waits, and notes when that was not for long enough.
func (p *probe) sleep(ctx context.Context, milliseconds int32, name string) error {
	if milliseconds == 0 {
		return nil
	}
	select {
	case <-time.After(time.Duration(milliseconds) * time.Millisecond):
		return nil
	case <-ctx.Done():
		p.note("%s: cancelled", name)
		return ctx.Err()
	}
}

func (p *probe) Notes(context.Context, *connect.Request[pb.NotesRequest]) (*connect.Response[pb.NotesResponse], error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	response := connect.NewResponse(&pb.NotesResponse{Notes: p.notes})
	p.notes = nil
	return response, nil
}

func (p *probe) Look(ctx context.Context, request *connect.Request[pb.EchoRequest]) (*connect.Response[pb.EchoResponse], error) {
	return p.Echo(ctx, request)
}

func (p *probe) Echo(ctx context.Context, request *connect.Request[pb.EchoRequest]) (*connect.Response[pb.EchoResponse], error) {
	if err := p.sleep(ctx, request.Msg.GetDelayMs(), request.Msg.GetText()); err != nil {
		return nil, err
	}
	response := connect.NewResponse(&pb.EchoResponse{Request: request.Msg})
	if deadline, given := ctx.Deadline(); given {
		response.Msg.TimeoutMs = time.Until(deadline).Milliseconds()
	}
	for name, values := range request.Header() {
		response.Msg.Headers = append(response.Msg.Headers, &pb.Header{Name: strings.ToLower(name), Values: values})
	}
	// Not headers, but to be seen all the same.
	for name, value := range map[string]string{":method": request.HTTPMethod(), ":peer": request.Peer().Addr} {
		response.Msg.Headers = append(response.Msg.Headers, &pb.Header{Name: name, Values: []string{value}})
	}
	misdeed, argument, _ := strings.Cut(request.Msg.GetMisdeed(), "=")
	switch misdeed {
	case "error":
		return nil, coded(argument)
	case "odd error":
		return nil, connect.NewError(connect.CodeAborted, errors.New("a\r\n\u00e4%\"\u2028\U0001f600"))
	case "error with metadata":
		err := connect.NewError(connect.CodeAborted, errors.New("no"))
		addDetail(err)
		setMetadata(err.Meta(), err.Meta(), request.Header())
		return nil, err
	case "big":
		response.Msg.Request = &pb.EchoRequest{Text: strings.Repeat("x", int(request.Msg.GetNumber()))}
	case "metadata":
		setMetadata(response.Header(), response.Trailer(), request.Header())
	}
	return response, nil
}

func (p *probe) Count(ctx context.Context, request *connect.Request[pb.CountRequest], stream *connect.ServerStream[pb.CountResponse]) error {
	name := request.Msg.GetName()
	p.note("%s: begin", name)
	defer p.note("%s: end", name)
	switch request.Msg.GetMisdeed() {
	case "error at once":
		return connect.NewError(connect.CodeNotFound, errors.New("at once"))
	case "metadata":
		setMetadata(stream.ResponseHeader(), stream.ResponseTrailer(), request.Header())
	}
	for number := range request.Msg.GetUpTo() {
		padding := make([]byte, request.Msg.GetPadding())
		if err := stream.Send(&pb.CountResponse{Number: number + 1, Padding: padding}); err != nil {
			return err
		}
		if err := p.sleep(ctx, request.Msg.GetDelayMs(), name); err != nil {
			return err
		}
	}
	if request.Msg.GetMisdeed() == "error last" {
		err := connect.NewError(connect.CodeNotFound, errors.New("enough"))
		addDetail(err)
		return err
	}
	return nil
}

func (p *probe) Sum(ctx context.Context, stream *connect.ClientStream[pb.SumRequest]) (*connect.Response[pb.SumResponse], error) {
	name := stream.RequestHeader().Get("X-Name")
	p.note("%s: begin", name)
	defer p.note("%s: end", name)
	sum := &pb.SumResponse{}
	for stream.Receive() {
		sum.Sum += stream.Msg().GetNumber()
		sum.Messages++
		switch stream.Msg().GetMisdeed() {
		case "error":
			return nil, connect.NewError(connect.CodeNotFound, errors.New("enough"))
		case "enough":
			return connect.NewResponse(sum), nil
		}
	}
	if err := stream.Err(); err != nil {
		p.note("%s: %v", name, connect.CodeOf(err))
		return nil, err
	}
	response := connect.NewResponse(sum)
	if stream.RequestHeader().Get("X-Misdeed") == "metadata" {
		setMetadata(response.Header(), response.Trailer(), stream.RequestHeader())
	}
	return response, nil
}

func (p *probe) Chat(ctx context.Context, stream *connect.BidiStream[pb.ChatRequest, pb.ChatResponse]) error {
	name := stream.RequestHeader().Get("X-Name")
	p.note("%s: begin", name)
	defer p.note("%s: end", name)
	switch stream.RequestHeader().Get("X-Misdeed") {
	case "error at once":
		return connect.NewError(connect.CodeNotFound, errors.New("at once"))
	case "greet":
		if err := stream.Send(&pb.ChatResponse{Text: "hello"}); err != nil {
			return err
		}
	case "metadata":
		setMetadata(stream.ResponseHeader(), stream.ResponseTrailer(), stream.RequestHeader())
	}
	delay, _ := strconv.Atoi(stream.RequestHeader().Get("X-Delay-Ms"))
	for {
		message, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			p.note("%s: %v", name, connect.CodeOf(err))
			return err
		}
		switch message.GetMisdeed() {
		case "error":
			return connect.NewError(connect.CodeNotFound, errors.New("enough"))
		case "enough":
			return nil
		}
		if err := stream.Send(&pb.ChatResponse{Text: message.GetText()}); err != nil {
			return err
		}
		if err := p.sleep(ctx, int32(delay), name); err != nil {
			return err
		}
	}
}

// coded gives an error by its code's name in upper case.
func coded(name string) error {
	var code connect.Code
	if err := code.UnmarshalText([]byte(strings.ToLower(name))); err != nil {
		return err
	}
	return connect.NewError(code, errors.New("this is "+name))
}

func addDetail(err *connect.Error) {
	detail, failure := connect.NewErrorDetail(&pb.PingRequest{Text: "detail"})
	if failure != nil {
		panic(failure)
	}
	err.AddDetail(detail)
}

// setMetadata fills headers and trailers, also with what the request gives to be sent back.
func setMetadata(headers, trailers, request http.Header) {
	headers["X-Head"] = []string{"1", "2"}
	trailers["X-Tail"] = []string{"3", "4"}
	for _, metadata := range []http.Header{headers, trailers} {
		if values := request.Values("X-Mirror-Bin"); len(values) > 0 {
			metadata["X-Mirror-Bin"] = slices.Clone(values)
		}
	}
}
