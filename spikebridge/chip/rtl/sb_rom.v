// SPDX-License-Identifier: Apache-2.0
// Words that do not change, read with one cycle of latency; the answer stays until the next read.
module sb_rom #(
    parameter WIDTH = 8,
    parameter DEPTH = 2,
    parameter INDEX = 1,      // bits that number DEPTH words
    parameter ADDRESS = 1,    // bits of addresses, at least INDEX
    parameter IMAGE = "image.mem"
) (
    input wire clk,
    input wire enable,
    input wire [ADDRESS-1:0] address,
    output reg [WIDTH-1:0] q
);
    reg [WIDTH-1:0] memory [0:DEPTH-1];
    wire [ADDRESS-INDEX:0] unused = address[ADDRESS-1:INDEX-1];

    initial $readmemh(IMAGE, memory);

    always @(posedge clk) if (enable) q <= memory[address[INDEX-1:0]];
endmodule
