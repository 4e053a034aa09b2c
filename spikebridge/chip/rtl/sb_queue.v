// SPDX-License-Identifier: Apache-2.0
// Words that wait: in_ready is low while all places are taken, so that none is lost.
// A word can leave in each cycle, two cycles after it came at the earliest.
module sb_queue #(
    parameter WIDTH = 8,
    parameter INDEX = 6       // 2^INDEX words
) (
    input wire clk,
    input wire rst,
    input wire in_valid,
    output wire in_ready,
    input wire [WIDTH-1:0] in_data,
    output reg out_valid,
    input wire out_ready,
    output reg [WIDTH-1:0] out_data
);
    reg [WIDTH-1:0] memory [0:(1<<INDEX)-1];
    // One bit more than an address: equal is empty, equal but for that bit is full.
    reg [INDEX:0] head, tail;
    wire [INDEX:0] next = head + {{INDEX{1'b0}}, out_valid && out_ready};

    assign in_ready = head != {~tail[INDEX], tail[INDEX-1:0]};

    always @(posedge clk) begin
        if (rst) begin
            head <= 0;
            tail <= 0;
            out_valid <= 1'b0;
        end else begin
            head <= next;
            out_valid <= next != tail;  // what comes now can be read from the next cycle on
            if (in_valid && in_ready) tail <= tail + 1'b1;
        end
        out_data <= memory[next[INDEX-1:0]];
        if (in_valid && in_ready) memory[tail[INDEX-1:0]] <= in_data;
    end
endmodule
