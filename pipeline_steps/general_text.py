"""A general text, written for this project: what a model forgets by fine-tuning shows in its loss on it.

Everyday prose, explanations, dialog, instructions, a recipe, a letter, numbers, code: nothing that a dataset is likely
to be about. The figure says something as a difference between models, not by itself. A module, so that it travels in
the step code's zip.
"""
# ruff: noqa: E501 - a passage is a line

TEXT = """
The kitchen clock had stopped at twenty past four, and nobody had noticed for a week. Anna found out only when she missed the bus. She climbed on a chair, took the clock from its hook, and discovered that a small spider had made its home behind the battery.

Rain forms when warm, moist air rises and cools. Cool air can hold less water vapour than warm air, so some of the vapour condenses on tiny particles of dust or salt. The droplets join, grow heavy, and fall. In winter they may freeze on the way down and reach the ground as snow or sleet.

"Did you lock the door?" he asked. "I thought you did," she said. They looked at each other, then at the train that was just pulling in. "We could ask Mrs Bell to check." "She is eighty-four and lives on the third floor." "Then we run," he said, and they ran.

To change a bicycle tyre, first take the wheel off and let all the air out. Push one side of the tyre over the rim with two levers, pull out the tube, and look for the hole by holding it under water. Clean the place, roughen it with sandpaper, apply the glue, wait five minutes, and press the patch on firmly.

A prime number is a whole number greater than one that can be divided only by one and by itself. The first primes are 2, 3, 5, 7, 11 and 13. There is no largest prime: multiply all the primes of any list together, add one, and the result has a prime factor that is not in the list.

Dear Mr Osei, thank you for your letter of 12 March. We are sorry that the parcel arrived late and that two of the six cups were broken. A replacement was sent this morning and should reach you by Friday. You need not return the broken ones. Yours sincerely, the customer service team.

The river divides the town into two unequal halves. On the north bank are the market, the old school and most of the shops; on the south bank there is little more than the mill, which has been a museum since the nineteen-seventies, and a row of poplars that can be seen from far away.

Question: Why does bread rise? Answer: Yeast eats the sugars in the dough and gives off carbon dioxide. The gas is caught in a web of gluten, the protein that forms when flour is kneaded with water, and so the dough swells. In the oven the gas expands once more before the crust sets.

The committee met on Tuesday to discuss the budget. Three members were in favour of repairing the roof at once, two wanted to wait for a second offer, and one was asleep. It was agreed to ask for the second offer and, in the meantime, to buy four buckets.

When you borrow money, the bank asks for interest, a price for the time that you use what is not yours. If you borrow 1,000 for a year at five percent, you pay back 1,050. If you pay nothing back for a second year, interest is due on the interest as well, and you owe 1,102.50.

For the soup you need two onions, three carrots, half a celery root, a litre of stock and a handful of lentils. Chop the vegetables finely, fry them in a little oil until they smell sweet, add the lentils and the stock, and let everything simmer for forty minutes. Salt it at the end.

The lighthouse keeper wrote down three things every evening: the wind, the height of the sea, and the number of ships. After he retired his daughter found the notebooks, forty of them, and noticed that on one day in each year he had also written down a name.

def average(values):
    # An empty list has no average.
    if not values:
        raise ValueError("no values were given")
    return sum(values) / len(values)

Sound travels through air at about 340 metres per second, and light almost a million times faster. That is why you see the lightning before you hear the thunder. Count the seconds between the two and divide by three, and you know roughly how many kilometres away the storm is.

The city council announced on Monday that the number 7 tram will run every six minutes from the beginning of May. At present passengers wait ten minutes on average. The change became possible after nine new drivers had finished their training in February.

My grandmother believed that every house has one window through which luck comes in, and that you must never put a plant in front of it. She never told us which window it was in hers. When the house was sold we stood in each room for a while and tried to guess.

A good map leaves things out. It shows the roads and not the cars, the forest and not the trees. Whoever draws it must decide what the reader wants to do: a hiker needs the height of the hills, a driver the numbers of the roads, a sailor the depth of the water.

There are three kinds of rock. Igneous rock is formed when molten material cools. Sedimentary rock is made of grains that settle in layers and are pressed together. Metamorphic rock was once one of the other two and has been changed by heat and pressure deep in the earth.

"The rule is simple," the teacher said. "Whoever breaks something says so at once, and nobody shouts." For the rest of the year not one test tube was broken, except for the eleven that fell when the teacher himself slipped on a wet floor. He said so at once.

Please read these notes before you use the washing machine. Do not put in more than six kilograms. Use half a spoon of powder for clothes that are only a little dirty. The door stays locked for two minutes after the end. If the red light blinks, clean the filter behind the small flap at the bottom.

In the year 1900 about one and a half billion people lived on earth. By 1960 there were three billion, and by 2022 eight billion. The growth is slowing down: in most countries families have fewer children than they used to, and the average age of the population rises.

The fox came every night at the same hour, crossed the garden diagonally, drank from the bird bath and left through the gap in the hedge. When the gap was mended it sat in front of it until morning, not angry, it seemed, but thinking.

Moving the coffee machine to the second floor saved, by our count, eleven minutes for each person and day. It also ended the only conversations that the people from accounting and the people from design ever had with one another. We are considering a second machine.

Subject: Meeting on Thursday. Hello all, the room on the fourth floor is taken, so we meet in the library at half past ten. Please bring the figures for the first quarter and one idea each for the summer party. Lena will join by phone. Best wishes, Tom

Water boils at 100 degrees Celsius at sea level. On a mountain the air presses less, and it boils earlier: at three thousand metres at about 90 degrees. Pasta therefore takes longer to cook up there, although the water bubbles just as merrily.

She had learned to play the piano late, at forty, from a man who never praised. After three years he listened to a short piece to the end, closed the lid and said, "Now we can begin." She walked home through the snow and did not feel cold at all.

If all roses are flowers and some flowers fade quickly, it does not follow that some roses fade quickly. The flowers that fade quickly might all be tulips. To be sure, one would have to know either that all flowers fade quickly or that the roses are among those that do.

The museum is open from Tuesday to Sunday, 10 a.m. to 5 p.m., and on Thursdays until 8 p.m. Admission is 9 euros, 6 euros for students, and free for children under twelve. Guided tours start at 11 and at 3. Bags must be left in the cloakroom.

A computer stores everything as numbers, and numbers as patterns of two states that we call zero and one. A letter is a number by agreement, a colour is three numbers, and a song is a long row of numbers that say where the membrane of the loudspeaker should be at each moment.

Two farmers argued about a tree that stood on the border of their fields. One wanted the shade, the other the sun. They asked the oldest woman of the village, who looked at the tree for a while and said, "Sell me the tree." Since then both have complained about her.

The heart is a muscle with four chambers. The right half pumps blood to the lungs, where it takes up oxygen; the left half pumps it to the rest of the body. At rest it beats sixty to eighty times in a minute, which makes about a hundred thousand beats in a day.

Leave the motorway at exit 14 and follow the signs to the harbour. After the second roundabout turn left into Mill Lane. The house is the fourth on the right, with a blue door. If you come to the church you have gone too far. You can park in front of the garage.

What is the difference between weather and climate? Weather is what happens today: it rains, it is windy, the sun comes out at noon. Climate is what usually happens in a place over many years. One cold winter says as little about the climate as one rich man says about a country.

The old printer made a noise before each page, a sort of sigh, as if it had to be talked into it. When the new one came, which was silent, people kept walking over to see whether it was working. In the end someone stuck a note on it: "I am quiet. I am printing."

To whom it may concern: Ms Farah Haddad worked in our bakery from 2015 to 2019, first as an apprentice and then as a baker. She was punctual, learned quickly, and taught two younger colleagues. She leaves at her own wish. We would employ her again at any time.

In chess the player with the white pieces moves first. Each piece moves in its own way: the rook in straight lines, the bishop diagonally, the knight in a bent jump. The game ends when a king is attacked and cannot escape, or when neither side can win any more.
"""

PASSAGES = [passage.strip("\n") for passage in TEXT.strip().split("\n\n")]
