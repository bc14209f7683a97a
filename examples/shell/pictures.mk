# Pictures and captions as things that make builds: only what is missing or older than its source is made.
# Run in a folder of pictures and prompts: make -f pictures.mk -j2
#   fox.prompt  ->  fox.png  ->  fox.png.txt

DRAWN := $(patsubst %.prompt,%.png,$(wildcard *.prompt))
CAPTIONS := $(addsuffix .txt,$(sort $(wildcard *.png) $(DRAWN)))

all: $(CAPTIONS)

# Written whole or not at all by the program itself; --force: make knows that the old one is out of date.
%.png: %.prompt
	omnimamba generate -q --from $< --seed 7 --force -o $@

# A redirection is not: hence the second name.
%.png.txt: %.png
	omnimamba caption -q --no-stream $< > $@.new && mv $@.new $@

clean:
	rm -f $(CAPTIONS) $(DRAWN)

.PHONY: all clean
.SECONDARY: $(DRAWN)
