// SPDX-License-Identifier: Apache-2.0
// One port that reads or writes; a read has one cycle of latency and stays until the next one.
module sb_ram #(
    parameter WIDTH = 8,
    parameter DEPTH = 2,
    parameter INDEX = 1,      // bits that number DEPTH words
    parameter ADDRESS = 1     // bits of addresses, at least INDEX
) (
    input wire clk,
    input wire enable,
    input wire write,
    input wire [ADDRESS-1:0] address,
    input wire [WIDTH-1:0] data,
    output reg [WIDTH-1:0] q
);
    reg [WIDTH-1:0] memory [0:DEPTH-1];
    wire [ADDRESS-INDEX:0] unused = address[ADDRESS-1:INDEX-1];

    always @(posedge clk) begin
        if (enable) begin
            if (write) memory[address[INDEX-1:0]] <= data;
            else q <= memory[address[INDEX-1:0]];
        end
    end
endmodule
