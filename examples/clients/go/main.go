// Ask for one history, and for three on a stream: go run . [HOST:PORT]
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	api "recommender-example/recommendapi"
)

func main() {
	target := "localhost:50051"
	if len(os.Args) > 1 {
		target = os.Args[1]
	}
	connection, err := grpc.Dial(target, grpc.WithInsecure())
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()

	if err := ask(ctx, api.NewRecommenderServiceClient(connection)); err != nil {
		log.Fatal(err)
	}
}

func ask(ctx context.Context, client api.RecommenderServiceClient) error {
	request := &api.RecommendRequest{ItemIds: []int32{1, 2, 3, 4}, Limit: 5, ExcludeHistory: true}
	reply, err := client.Recommend(ctx, request)
	if err != nil {
		return err
	}
	fmt.Println("one:", reply.ItemIds, "by", reply.ModelVersion)

	stream, err := client.StreamRecommend(ctx)
	if err != nil {
		return err
	}
	for id, history := range [][]int32{{0}, {9999, 999, 99}, {-1}} {
		request := &api.RecommendRequest{ItemIds: history, Limit: 3}
		if err := stream.Send(&api.StreamRecommendRequest{CorrelationId: uint64(id), Request: request}); err != nil {
			return err
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		reply, err := stream.Recv()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if fault := reply.GetError(); fault != nil {
			fmt.Printf("stream %d: %s: %s\n", reply.CorrelationId, codes.Code(fault.Code), fault.Message)
		} else {
			fmt.Printf("stream %d: %v\n", reply.CorrelationId, reply.GetResponse().ItemIds)
		}
	}
}
